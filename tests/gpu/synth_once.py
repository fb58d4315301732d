"""Write a random checkpoint unless it is there already: `python tests/gpu/synth_once.py FOLDER SIZE [LAYERS]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptoss_dist.model.synth import synthesize


def main(folder: str, size: str, layers: str | None = None) -> None:
    """A folder of that name is a whole checkpoint: an unfinished one has another."""
    if Path(folder).is_dir():
        print(json.dumps({"folder": folder, "there": True}))
        return
    print(json.dumps(synthesize(size, Path(folder), layers=int(layers) if layers else None)))


if __name__ == "__main__":
    main(*sys.argv[1:])
