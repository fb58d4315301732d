"""The commands that start a number of ranks, as argument lists and as text for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

SCRIPT = "launch/main.py"
MODULE = "gptoss_dist"


def torchrun_command(world_size: int, words: Sequence[str], *, script: str | None = None) -> list[str]:
    """torchrun on this machine: of the package, or of `script` where given."""
    program = [script] if script else ["-m", MODULE]
    return ["torchrun", "--standalone", f"--nproc_per_node={world_size}", *program, *words]


def accelerate_command(world_size: int, words: Sequence[str], *, script: str = SCRIPT) -> list[str]:
    """accelerate on this machine, one rank a GPU."""
    config = "--config_file=launch/accelerate.yaml"
    return ["accelerate", "launch", config, f"--num_processes={world_size}", script, *words]


def srun_command(world_size: int, words: Sequence[str], *, script: str = SCRIPT) -> list[str]:
    """srun inside an allocation; SLURM spreads the ranks over its nodes."""
    return ["srun", f"--ntasks={world_size}", "--kill-on-bad-exit=1", "python", script, *words]


def shell_text(argv: Sequence[str]) -> str:
    """The command as a person would type it, quoted where a shell needs it."""
    return shlex.join(argv)
