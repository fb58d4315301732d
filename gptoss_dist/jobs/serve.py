"""`job=serve`: the OpenAI API over HTTP on rank 0, the engine on all ranks.

rank 0, main thread     engine loop: letters in, steps, events out
rank 0, HTTP thread     uvicorn and the routes, from before the weights are loaded
other ranks             Engine.follow, until rank 0 releases them
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_dist.engine.engine import Engine
from gptoss_dist.errors import ConfigError
from gptoss_dist.jobs.table import Result
from gptoss_dist.output import write_json
from gptoss_dist.schema.job.serve import ServeConf
from gptoss_dist.schema.run import Backend, RunConf
from gptoss_dist.server.app import build_app
from gptoss_dist.server.engine_loop import run_loop
from gptoss_dist.server.front import Front, bind
from gptoss_dist.server.keys import keys_for
from gptoss_dist.server.served_model import ServedModel, fingerprint_of, names_of
from gptoss_dist.server.service import Service
from gptoss_dist.server.store import ResponseStore

if TYPE_CHECKING:
    from gptoss_dist.runtime.watch import Watch
    from gptoss_dist.session import Session

_AFTER_DRAIN_S = 5.0
"""From the end of a drain to the end of the process: last events are sent, ranks leave."""
_SPREAD_S = 0.5
"""How long a failure may take to reach the clients before the process ends."""


@dataclass(frozen=True)
class _Open:
    """A server that answers already, and says that it is loading."""

    service: Service
    front: Front


_open: _Open | None = None
"""Made by `check`, before weights are loaded; used by `run`."""


def check(run: RunConf) -> None:
    """Listen, before anything is loaded: a port in use, or a missing key, is told at once."""
    global _open
    job = run.job
    assert isinstance(job, ServeConf)
    if run.engine.name == "scripted" and run.engine.script is None:
        raise ConfigError("engine=scripted needs a script: engine.script=FILE.")
    keys = keys_for(job.host, job.allow_anonymous)
    service = Service(job.max_waiting, job.max_behind)
    store = ResponseStore(job.store_responses, int(job.store_mb * 2**20))
    app = build_app(service, keys, job.max_body_mb, job.access_log, store, job.cors_origins)
    front = Front(app, service, bind(job.host, job.port))
    front.start()
    _open = _Open(service, front)


def run(session: Session, watch: Watch, as_json: bool) -> None:
    """Serve until a signal; all ranks."""
    job = session.run.job
    assert isinstance(job, ServeConf)
    watch.allow_after_signal(job.drain_s + _AFTER_DRAIN_S)
    if session.group.rank != 0:
        session.engine.follow()
        return
    degrees = session.loaded.degrees
    plan = f"plan {session.loaded.plan.name}, dp={degrees.dp}, tp={degrees.tp}"
    model = _model(session.run, session.backend, session.engine, session.loaded.checkpoint.shape.vocab, plan)
    _serve(session.run, session.engine, model, watch, plan, as_json, session.group.world_size, _kernels(session))


def run_alone(run: RunConf, as_json: bool) -> Result:
    """Serve a script (`engine=scripted`): one process, no weights."""
    from gptoss_dist.engine.scripted import ScriptedEngine, ScriptedShape
    from gptoss_dist.runtime.watch import guard
    from gptoss_dist.server.script import load_script

    assert run.engine.script is not None
    engine = ScriptedEngine(load_script(run.engine.script).choose, run.engine)
    check(run)
    with guard(None) as watch:
        assert isinstance(run.job, ServeConf)
        watch.allow_after_signal(run.job.drain_s + _AFTER_DRAIN_S)
        plan = f"script {run.engine.script}"
        model = _model(run, run.backend, engine, ScriptedShape().vocabulary, plan)
        _serve(run, engine, model, watch, plan, as_json)
    return Result({}, "")


def _kernels(session: Session) -> str:
    """What computes a step, for the web page."""
    chosen = session.loaded.kernels
    rest = f"step={chosen.step}" if session.backend is Backend.engine else f"attention={chosen.attention}"
    return f"experts={chosen.experts.value}, {rest}"


def _model(run: RunConf, backend: Backend, engine: Engine, vocabulary: int, plan: str) -> ServedModel:
    assert isinstance(run.job, ServeConf)
    names = names_of(run.model, run.job.model_name)
    return ServedModel(
        name=names[0],
        aliases=names,
        any_model=run.job.any_model,
        context=engine.context,
        vocabulary=vocabulary,
        created=int(time.time()),
        fingerprint=fingerprint_of(names, plan, backend.value),
        generation=run.generation,
        date=run.job.date,
    )


def _serve(
    run: RunConf,
    engine: Engine,
    model: ServedModel,
    watch: Watch,
    plan: str,
    as_json: bool,
    ranks: int = 1,
    kernels: str = "none",
) -> None:
    assert _open is not None, "check comes first"
    assert isinstance(run.job, ServeConf)
    service, front, drain_s = _open.service, _open.front, run.job.drain_s

    def on_end() -> None:
        cause = watch.cause
        if cause is not None and cause.kind == "stopped":
            service.drain(drain_s)
            return
        if cause is not None:
            service.ranks[cause.rank] = False
        service.fail("a rank of this server failed; it ends." if cause is None else f"rank {cause.rank} failed.")
        time.sleep(_SPREAD_S)

    watch.on_stop(on_end)
    if watch.stop_requested.is_set():  # told to stop while it was loading
        service.drain(0.0)
    service.ranks = dict.fromkeys(range(ranks), True)
    service.about = {"plan": plan.removeprefix("plan "), "kernels": kernels}
    service.open(model)
    _announce(model, front, plan, as_json)
    run_loop(engine, service.mailbox, service.stepped, service.is_over.is_set)
    front.stop()


def _announce(model: ServedModel, front: Front, plan: str, as_json: bool) -> None:
    print(f"serving {model.name} on {front.url} ({plan})", file=sys.stderr, flush=True)
    if as_json:
        content: dict[str, Any] = {"model": model.name, "url": front.url, "context": model.context, "plan": plan}
        write_json(content)
