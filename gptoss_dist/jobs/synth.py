"""`gptoss synth`: write a random checkpoint of real shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_dist.devices import visible_gpus
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.jobs.table import Result
from gptoss_dist.model.synth import synthesize
from gptoss_dist.schema.cluster import Device
from gptoss_dist.schema.job.synth import SynthConf
from gptoss_dist.schema.run import RunConf


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    job = run.job
    assert isinstance(job, SynthConf)
    if job.out is None:
        raise ConfigError("gptoss synth needs a folder to write: --out DIR.")
    device = "cuda" if run.cluster.device is not Device.cpu and visible_gpus() else "cpu"
    return Result(run_synth(job.size, job.out, job.seed, job.layers, job.experts, job.dense, device))


def run_synth(
    size: str,
    out: str | Path | None,
    seed: int = 0,
    layers: int | None = None,
    experts: int | None = None,
    dense: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Write the checkpoint into the folder `out` and say what was written; raises what `synthesize` raises."""
    if out is None:
        raise ConfigError("synth: no folder to write to. Name one with job.out=FOLDER.")
    return synthesize(size, user_path(out, "job.out"), seed, device, layers, experts, dense)
