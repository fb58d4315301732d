"""`gptoss slurm JOB …`: the run that `JOB …` says as a SLURM batch script, printed or submitted.

The words are checked here, on the login node, as the ranks would check them; those of the group `slurm` stay out of the
script.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_dist.errors import ConfigError, SlurmError
from gptoss_dist.jobs.table import Result, needs_ranks
from gptoss_dist.launcher.slurm import render
from gptoss_dist.plan.degrees import resolve_degrees
from gptoss_dist.schema.run import RunConf

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited|infinite", re.IGNORECASE)
"""A time limit as sbatch(1) takes it."""


def run_slurm(run: RunConf, words: Sequence[str]) -> Result:
    """Render the script for `words`; with slurm.submit=true hand it to sbatch.

    Raises ConfigError for what does not go together or cannot be read there, SlurmError with what sbatch said.
    """
    if run.slurm.stage is not None and not Path(run.model.path).is_dir():
        raise ConfigError(
            f"slurm.stage copies the folder of the weights, and model.path={run.model.path} is none here. Set "
            "model.path=DIR."
        )
    _check_no_input(run)
    if run.slurm.time is not None and not _TIME.fullmatch(run.slurm.time):
        raise ConfigError(
            f"slurm.time={run.slurm.time}: SLURM reads MINUTES, HH:MM:SS, DAYS-HH, DAYS-HH:MM or UNLIMITED."
        )
    kept = [word for word in words if not word.startswith(("slurm=", "slurm."))]
    script = render(run.slurm, kept, _world_size(run), run.model.path, made_by=f"gptoss slurm {shlex.join(words)}")
    if not run.slurm.submit:
        return Result({"script": script}, script.removesuffix("\n"))
    said = _submit(script, Path(run.slurm.logs), run.slurm.test_only)
    if run.slurm.test_only:
        return Result({"script": script, "said": said}, said)
    return Result({"script": script, "job": said}, f"submitted: job {said}, log files in {run.slurm.logs}/")


def _check_no_input(run: RunConf) -> None:
    """A batch script has no standard input of the shell that submits it."""
    job = run.job
    for key in ("input", "file"):
        if "-" in _names(getattr(job, key, None)):
            raise ConfigError(
                f"job.{key}=- is standard input, and a job of SLURM has none: write it to a file that the nodes see, "
                f"and give job.{key}=FILE."
            )


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _world_size(run: RunConf) -> int:
    if not needs_ranks(run):
        return 1
    conf, plan = run.slurm, run.plan
    each = conf.ranks_per_node or conf.gpus_per_node
    if each is None and (plan.auto or plan.dp is None or plan.tp is None):
        raise ConfigError(
            f"plan={plan.name} takes as many ranks as there are: say how many with slurm.gpus_per_node=N "
            "(or slurm.ranks_per_node=N on nodes without GPUs)."
        )
    devices = conf.nodes * each if each is not None else 1
    return resolve_degrees(plan, None, devices).world_size


def _submit(script: str, logs: Path, test_only: bool) -> str:
    """Ask SLURM whether it would take the script, then hand it over; the job's id, or when it would start."""
    if shutil.which("sbatch") is None:
        raise SlurmError("slurm.submit=true needs sbatch, and there is none here. Without it the script is printed.")
    try:
        logs.mkdir(parents=True, exist_ok=True)  # SLURM fails a job without a word if its log cannot be opened
    except OSError as error:
        raise SlurmError(f"slurm.logs={logs}: the folder cannot be made: {error.strerror}.") from None
    would = _sbatch(script, "--test-only")
    return would if test_only else _sbatch(script, "--parsable")


def _sbatch(script: str, option: str) -> str:
    done = subprocess.run(["sbatch", option], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise SlurmError(f"sbatch {option} refuses the script: {said}. Look at it with slurm.submit=false.")
    return (done.stdout or done.stderr).strip()
