"""Tests that run a kernel's own code on the CPU, in Triton's interpreter.

The interpreter must be chosen before Triton is imported, so all such tests of a file run in one process of their own,
started by the first of them. What `torch.empty` returns there is poisoned: NaN, or −77 for integers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_HERE = os.environ.get("TRITON_INTERPRET") == "1"
_SEED = "GPTOSS_TEST_SEED"


def interpreted(body: Callable[[], None]) -> Callable[[], None]:
    """Make `body` a test that runs in the interpreter, after `torch.manual_seed` of a seed that failures name."""
    file = body.__code__.co_filename

    def test() -> None:
        outcome = _outcomes(file)
        failure = outcome["failures"].get(body.__name__)
        assert failure is None, f"{_SEED}={outcome['seed']}\n{failure}"
        assert body.__name__ in outcome["ran"]

    made = body if _HERE else test
    made.__name__, made.__module__ = body.__name__, body.__module__
    made.interpreted = True  # type: ignore[attr-defined]
    return made


@functools.cache
def _outcomes(file: str) -> dict[str, Any]:
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    folders = [str(Path(__file__).parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    command = [sys.executable, "-W", "ignore", __file__, file]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def poison() -> None:
    """From now on fresh tensors hold NaN or −77."""
    for name in ("empty", "empty_like"):
        fresh = getattr(torch, name)

        def poisoned(*arguments: Any, fresh: Any = fresh, **options: Any) -> torch.Tensor:
            made: torch.Tensor = fresh(*arguments, **options)
            return made.fill_(torch.nan if made.is_floating_point() else -77)

        setattr(torch, name, poisoned)


def _main(file: str) -> None:
    importlib.import_module("interpreter_loops")
    seed = int(os.environ.get(_SEED) or secrets.randbits(31))
    spec = importlib.util.spec_from_file_location("interpreted_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interpreted_tests"] = module
    spec.loader.exec_module(module)
    poison()
    outcome: dict[str, Any] = {"seed": seed, "ran": [], "failures": {}}
    for name, body in list(vars(module).items()):
        if getattr(body, "interpreted", False):
            torch.manual_seed(seed)
            outcome["ran"].append(name)
            try:
                body()
            except Exception:  # noqa: BLE001  reported to the test that asked
                outcome["failures"][name] = traceback.format_exc()
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main(sys.argv[1])
