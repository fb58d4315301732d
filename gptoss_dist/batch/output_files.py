"""What lies beside an output, and whether there may be one."""

from __future__ import annotations

import time
from pathlib import Path

from gptoss_dist.batch.manifest import read_manifest
from gptoss_dist.batch.part import cannot_write
from gptoss_dist.errors import BatchError, ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.schema.job.batch import BatchConf


def output_of(job: BatchConf) -> Path:
    """The file that the answers go to. Raises ConfigError for a home folder that nobody has."""
    assert job.output is not None
    return user_path(job.output, "job.output")


def parts_folder(output: Path) -> Path:
    """Where the answers grow."""
    return output.with_name(output.name + ".parts")


def stdin_copy(output: Path) -> Path:
    """Where standard input is kept for a restart."""
    return output.with_name(output.name + ".stdin")


def check_nothing_else_there(output: Path) -> None:
    """Raise ConfigError for an output that no batch which is under way has made."""
    if output.is_dir() or (output.exists() and not parts_folder(output).exists()):
        raise ConfigError(f"{output} is there already, and is not this batch's. Give another job.output.")


def check_output(output: Path) -> None:
    """Raise ConfigError for an output that is something else, BatchError if nothing can be written beside it."""
    if read_manifest(output) is None:
        check_nothing_else_there(output)
    if not output.parent.is_dir():
        raise BatchError(f"job.output={output}: there is no folder {output.parent}. Make it, or name another file.")
    probe = output.with_name(f"{output.name}.probe-{time.time_ns()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(output, error) from None
