"""`gptoss synth`: write a random checkpoint of real shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_dist.errors import ConfigError
from gptoss_dist.model.synth import synthesize


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
    return synthesize(size, Path(out).expanduser(), seed, device, layers, experts, dense)
