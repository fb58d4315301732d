"""Which module does which job. Modules are imported when their job runs, so that `gptoss plan` never waits for torch.

A job on ranks has a module with

- `check(run)`: what can be refused before anything is loaded; called on rank 0;
- `run(session, watch, as_json)`: the work, on all ranks; rank 0 returns what `--json` prints, or None;
- if the model's config decides what is possible, `check_model(run, checkpoint)`: what can be refused once the
  checkpoint is open and before its weights are read; called on rank 0;
- if the work may turn out to be done, `before_loading(run)`, called on rank 0: what `--json` prints if it is, or None;
  then no rank loads the model. `show(content)` prints it for people.

`doctor` works on ranks without loading a model: `run_without_model(run, env, watch, as_json)`.

A job of one process has `run(run)`, which returns a `Result`. A job on ranks that is aimed at a server
(`job.target=URL`), or that serves a script (`engine=scripted`), needs neither ranks nor a model: its module then has
`run_alone(run, as_json)` too.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from gptoss_dist.collector import uncollected
from gptoss_dist.schema.run import RunConf


class Result(NamedTuple):
    """What a job found: the content of `--json`, and a text for people if there is a better one than its keys."""

    content: dict[str, Any]
    text: str | None = None


_ON_RANKS = {
    "batch": "gptoss_dist.jobs.batch",
    "bench": "gptoss_dist.jobs.bench",
    "chat": "gptoss_dist.jobs.chat",
    "generate": "gptoss_dist.jobs.generate",
    "serve": "gptoss_dist.jobs.serve",
}
_WITHOUT_MODEL = {"doctor": "gptoss_dist.jobs.doctor"}
_ONE_PROCESS = {
    "plan": "gptoss_dist.jobs.plan",
    "synth": "gptoss_dist.jobs.synth",
    "tiny": "gptoss_dist.jobs.tiny",
    "prefetch": "gptoss_dist.jobs.prefetch",
}


def needs_ranks(run: RunConf) -> bool:
    """Whether the job runs on as many ranks as the plan has."""
    return loads_model(run) or run.job.name in _WITHOUT_MODEL


def loads_model(run: RunConf) -> bool:
    """Whether the job begins with the model, loaded over the ranks."""
    return run.job.name in _ON_RANKS and getattr(run.job, "target", None) is None and run.engine.script is None


def module_of(run: RunConf) -> Any:
    """The module of the job; see above for its functions."""
    with uncollected():
        return importlib.import_module({**_ON_RANKS, **_WITHOUT_MODEL, **_ONE_PROCESS}[run.job.name])


def run_in_one_process(run: RunConf, as_json: bool) -> Result:
    """Do a job that needs no ranks."""
    module = module_of(run)
    result: Result = module.run_alone(run, as_json) if run.job.name in _ON_RANKS else module.run(run)
    return result
