"""A model on its ranks, ready to generate: what every job that needs weights begins with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gptoss_dist.config import as_dict
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.transformers_engine import TransformersEngine
from gptoss_dist.errors import ConfigError
from gptoss_dist.kernels.registry import CAPTURABLE, Chosen, choose_kernels
from gptoss_dist.kernels.step_kernels import CAPTURABLE_STEPS, step_kernels
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.log import get_logger
from gptoss_dist.model.checkpoint import identity, open_checkpoint
from gptoss_dist.model.load import Loaded, load_model
from gptoss_dist.model.source import checkpoint_folder
from gptoss_dist.plan.degrees import choose_plan, resolve_degrees
from gptoss_dist.runtime.agree import Gatherer, check_agreement, versions
from gptoss_dist.runtime.dist import RankGroup, device_type_of, start
from gptoss_dist.runtime.mesh import Ranks, make_ranks
from gptoss_dist.schema.plan import PlanConf
from gptoss_dist.schema.run import Backend, RunConf

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

logger = get_logger(__name__)


@dataclass(frozen=True)
class Session:
    """One rank's share of a loaded model, and the engine over it.

    `run` is what was asked for, word by word: a digest of it is the same before and after loading. `backend` is the
    one in use, whatever `auto` came to here.
    """

    run: RunConf
    backend: Backend
    group: RankGroup
    ranks: Ranks
    loaded: Loaded
    engine: Engine

    def close(self) -> None:
        """Leave the group in step with the other ranks."""
        self.engine.close()
        self.group.stop()


def open_session(run: RunConf, env: RankEnv | None, store: Store | None = None) -> Session:
    """Join the other ranks, agree on what is run, and load this rank's share. Collective."""
    return load_session(run, join_ranks(run, env, store))


def join_ranks(run: RunConf, env: RankEnv | None, store: Store | None = None) -> RankGroup:
    """Join the other ranks, and agree on what is run. Collective."""
    timeout = timedelta(seconds=run.cluster.timeout_s)
    group = start(device_type_of(run.cluster.device), env, store=store, timeout=timeout)
    _agree(run, group)
    return group


def load_session(run: RunConf, group: RankGroup) -> Session:
    """Load this rank's share. Collective."""
    plan, degrees = run.plan, resolve_degrees(run.plan, group.world_size, group.world_size)
    checkpoint = open_checkpoint(checkpoint_folder(run.model))
    if group.world_size > 1:
        advice = f"Give every machine the same revision of the weights (here: {checkpoint.folder})."
        check_agreement(group, "the checkpoint", identity(checkpoint), advice)
    if plan.auto:
        plan, reason = choose_plan(checkpoint.shape, group.world_size)
        degrees = resolve_degrees(plan, group.world_size, group.world_size)
        logger.info("plan=auto chose %s (dp=%d, tp=%d): %s", plan.name, degrees.dp, degrees.tp, reason)
    ranks = make_ranks(group, dp=degrees.dp, tp=degrees.tp)
    kernels = choose_kernels(run.kernels, group.device, checkpoint.packed and not run.model.dequantize)
    if kernels.reason:
        logger.info("kernels: %s", kernels.reason)
    agree_on_kernels(kernels, degrees.tp, group)
    backend = _backend(run.backend, plan, kernels, group)
    if backend is Backend.engine:
        step_kernels(kernels.step, kernels.step_reason)  # what it cannot compute with is refused before loading
    loaded = load_model(run.model, checkpoint, plan, degrees, kernels, group.device, group.rank)
    _report(loaded, group)
    return Session(run, backend, group, ranks, loaded, _engine(run, backend, loaded, group, ranks))


def agree_on_kernels(kernels: Chosen, tp: int, group: Gatherer) -> None:
    """Compare what was chosen on the ranks of each replica. Collective. Raises RankError where it differs.

    Other kernels round otherwise: what every rank computes for itself, and the experts that it chooses by it, would
    not be the same on all of them.
    """
    chosen = {"attention": kernels.attention, "experts": kernels.experts.value, "the engine's step": kernels.step}
    advice = "Name kernels.attention and kernels.experts, or give all ranks of a replica the same GPUs and packages."
    check_agreement(group, "the choice of kernels", chosen, advice, size=tp)


def choose_backend(wanted: Backend, plan: PlanConf, kernels: Chosen) -> Backend:
    """What `auto` means on this rank: the paged engine where its steps can be CUDA graphs."""
    if wanted is not Backend.auto:
        return wanted
    fast = kernels.step in CAPTURABLE_STEPS and kernels.experts in CAPTURABLE and not plan.device_map
    return Backend.engine if fast else Backend.transformers


def _backend(wanted: Backend, plan: PlanConf, kernels: Chosen, group: RankGroup) -> Backend:
    """The same on every rank: what one of them cannot do none does. Collective."""
    names = group.all_gather_object(choose_backend(wanted, plan, kernels).value)
    chosen = Backend.engine if set(names) == {Backend.engine.value} else Backend.transformers
    if wanted is Backend.auto and group.device.type == "cuda":
        logger.info("backend: %s", chosen.value)
    return chosen


def _engine(run: RunConf, backend: Backend, loaded: Loaded, group: RankGroup, ranks: Ranks) -> Engine:
    from gptoss_dist.engine.size import cache_size, chosen_step, free_bytes

    if backend is Backend.transformers:
        found = group.all_gather_object(free_bytes(loaded.model.lm_head.weight.device, run.engine))
        room = min((free for free in found if free is not None), default=None)
        return TransformersEngine(loaded, group, ranks, run.cluster.agree_every, run.engine.max_running, room)
    from gptoss_dist.engine.paged_engine import PagedEngine
    from gptoss_dist.engine.take_weights import take_weights

    if loaded.plan.device_map:
        raise ConfigError(
            "backend=engine keeps its cache on one GPU a rank; plan=device_map needs backend=transformers."
        )
    take_weights(loaded, ranks.tp_rank)  # some are joined, and what that frees counts as free
    conf = chosen_step(run.engine, loaded, group)
    size = cache_size(conf, loaded, group)
    return PagedEngine(loaded, group, ranks, conf, size, run.cluster.agree_every)


def _agree(run: RunConf, group: RankGroup) -> None:
    """Before anything is loaded: one configuration and one set of packages on all ranks."""
    if group.world_size == 1:
        return
    check_agreement(
        group,
        "the configuration",
        _flat(as_dict(run)),
        "Start every rank with the same words and the same conf folder.",
    )
    check_agreement(group, "the installed packages", versions(), "Install the same versions on every machine.")


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"plan": {"tp": 2}}` as `{"plan.tp": "2"}`."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return flat


def _report(loaded: Loaded, group: RankGroup) -> None:
    sizes = group.all_gather_object((loaded.weight_bytes, loaded.planned.weights))
    unit, name = (1e9, "GB") if max(plan for _, plan in sizes) >= 1e9 else (1e6, "MB")
    held = ", ".join(f"{mine / unit:.2f}" for mine, _ in sizes)
    planned = ", ".join(f"{plan / unit:.2f}" for _, plan in sizes)
    logger.info(
        "loaded %s in %.1f s: plan=%s (dp=%d, tp=%d), attention=%s, experts=%s",
        loaded.checkpoint.folder.name,
        loaded.seconds,
        loaded.plan.name,
        loaded.degrees.dp,
        loaded.degrees.tp,
        loaded.kernels.attention,
        loaded.kernels.experts.value,
    )
    logger.info("weights by rank: %s %s held, %s %s planned", held, name, planned, name)
