"""Load a checkpoint over the ranks by a plan, and prove that every rank holds what was planned."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM
from transformers.utils import logging as hf_logging

from gptoss_dist.errors import CheckpointError, ConfigError, PlanError
from gptoss_dist.files import read_json
from gptoss_dist.kernels.registry import Chosen, use_expert_kernel
from gptoss_dist.log import get_logger
from gptoss_dist.memory import RankMemory, predict
from gptoss_dist.model.checkpoint import Checkpoint
from gptoss_dist.model.parallel import distributed_config, model_class
from gptoss_dist.model.quantizer import METHOD
from gptoss_dist.model.views import dense_state, packed_state
from gptoss_dist.plan.degrees import Degrees, check_plan
from gptoss_dist.plan.layout import pieces
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.plan.verify import check_rules, check_shards
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.schema.plan import PlanConf

logger = get_logger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model on this rank, with what was planned for it and what it took."""

    model: GptOssForCausalLM
    checkpoint: Checkpoint
    plan: PlanConf
    degrees: Degrees
    kernels: Chosen
    planned: RankMemory
    weight_bytes: int
    """Bytes of parameters that this rank really holds."""
    seconds: float


def load_model(
    conf: ModelConf,
    checkpoint: Checkpoint,
    plan: PlanConf,
    degrees: Degrees,
    kernels: Chosen,
    device: torch.device,
    rank: int,
) -> Loaded:
    """Load this rank's pieces of `checkpoint` onto `device`.

    Collective: every rank of the world calls it. Raises ConfigError where model and plan do not go together,
    CheckpointError for what the files lack, and PlanError where a rank holds something else than its plan says.
    """
    start = time.perf_counter()
    generation = _generation_config(checkpoint)
    (hf_logging.enable_progress_bar if rank == 0 else hf_logging.disable_progress_bar)()
    packed = checkpoint.packed and not conf.dequantize
    check_plan(plan, checkpoint.shape, degrees, packed)
    rules = rules_of(plan, packed)
    dtype = checkpoint.dtype if conf.dtype.value == "auto" else conf.dtype.value
    config = _config(checkpoint, packed)
    if plan.device_map and device.type != "cuda":
        raise ConfigError("plan=device_map places layers over several GPUs, and this machine shows none.")
    placement: Any = "auto" if plan.device_map else ({"": device} if degrees.tp == 1 else None)
    model, info = _from_pretrained(
        model_class(degrees, device.type),
        plan,
        config=config,
        state_dict=packed_state(checkpoint) if packed else dense_state(checkpoint),
        dtype=getattr(torch, dtype),
        device_map=placement,
        distributed_config=distributed_config(config, rules, degrees),
        attn_implementation=kernels.attention,
    )
    _check_loading(info, checkpoint)
    held = {name: local_shape(parameter) for name, parameter in model.named_parameters()}
    if degrees.tp > 1:
        check_rules(rules, [name for name, _ in model.named_modules()] + list(held))
    check_shards(pieces(checkpoint.shape, packed, rules, degrees.tp, degrees.tp_rank(rank)), held, rank)
    planned = predict(checkpoint.shape, rules, degrees, packed, dtype, rank)
    size = sum(local(one).nbytes for one in model.parameters())
    _unwrap(model)
    if packed:
        use_expert_kernel(model, kernels)
    model.generation_config = generation
    return Loaded(model, checkpoint, plan, degrees, kernels, planned, size, time.perf_counter() - start)


def _from_pretrained(cls: Any, plan: PlanConf, **arguments: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model and what transformers says of its loading; a rule of one's own that it refuses is a PlanError."""
    try:
        model, info = cls.from_pretrained(None, output_loading_info=True, **arguments)
    except ValueError as error:
        if not plan.rules:
            raise
        raise PlanError(f"plan={plan.name}: transformers refuses a rule of plan.rules: {error}") from error
    return model, info


def _unwrap(model: torch.nn.Module) -> None:
    """Replace sharded parameters by this rank's plain pieces, once loaded and checked.

    The styles compute on local tensors anyway, and taking them out of a DTensor in every forward costs a decode step
    more host time than the model itself. The embedding stays: its lookup by DTensor masks the other ranks' rows.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                piece = torch.nn.Parameter(parameter.to_local(), requires_grad=parameter.requires_grad)
                module.register_parameter(name, piece)


def local(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a parameter, sharded or not."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def local_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of what this rank holds of a parameter."""
    return tuple(local(parameter).shape)


def _config(checkpoint: Checkpoint, packed: bool) -> GptOssConfig:
    content = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    file = checkpoint.folder / "config.json"
    try:
        config = GptOssConfig.from_dict(content)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file}: transformers refuses it: {reason} Fetch it again.") from None
    padding, vocab = config.pad_token_id, checkpoint.shape.vocab
    if padding is not None and not 0 <= padding < vocab:
        raise CheckpointError(f"{file}: pad_token_id is {padding}, outside a vocabulary of {vocab}. Fetch it again.")
    if packed:
        config.quantization_config = {"quant_method": METHOD}
    return config


def _check_loading(info: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """transformers reports what it could not load and goes on with random weights; here that is an error."""
    for kind in ("missing_keys", "mismatched_keys", "conversion_errors", "error_msgs"):
        if wrong := info.get(kind):
            first = next(iter(wrong))
            raise CheckpointError(f"{checkpoint.folder}: {kind.replace('_', ' ')} while loading, the first: {first}")


def _generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    file = checkpoint.folder / "generation_config.json"
    if not file.is_file():
        return GenerationConfig()
    try:
        return GenerationConfig.from_dict(read_json(file))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: transformers refuses it: {' '.join(str(error).split())} Fetch it again."
        ) from None
