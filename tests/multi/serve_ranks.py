"""A real server of the toy on two ranks, as a person starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx

WORDS = [
    "serve",
    "model=tiny",
    "backend=engine",
    "cluster.device=cpu",
    "engine.cache_tokens=8192",
]
PLAN = ("plan=tp", "plan.tp=2")
BIN = Path(sys.executable).parent


class Server:
    """A started command; `url` once it serves."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        launcher: tuple[str, ...] = (),
        plan: tuple[str, ...] = PLAN,
        **environ: str,
    ) -> None:
        self._out, self._err = folder / "out", folder / "err"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        program = [*launcher, "-m", "gptoss_dist"] if launcher else [sys.executable, "-m", "gptoss_dist"]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*program, *WORDS, *plan, "job.port=0", "--json", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**kept, "OMP_NUM_THREADS": "1", **environ},
            )
        self.url = ""

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_until_it_serves(self, times: int = 1) -> Server:
        """Until it has said for the `times`-th time that it serves."""
        deadline = time.monotonic() + 150
        while len(lines := self._out.read_text().splitlines()) < times:
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.05)
        self.url = json.loads(lines[-1])["url"]
        return self

    def wait_until(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.02)

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=20).text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line[:1] != "#")
        return defaultdict(float, {name: float(value) for name, _, value in pairs})

    def held_pages(self) -> float:
        seen = self.metrics()
        return sum(value for name, value in seen.items() if name.startswith("gptoss_kv_pages{") and "held" in name)

    def ranks(self) -> dict[int, int]:
        """Rank → process id of the launcher's children."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"\nPPid:\t{self.process.pid}\n" not in (folder / "status").read_text():
                    continue
                variables = (folder / "environ").read_bytes().split(b"\0")
                found |= {int(one[5:]): int(folder.name) for one in variables if one.startswith(b"RANK=")}
        return found

    def status(self, within_s: float = 90.0) -> int:
        return self.process.wait(timeout=within_s)

    def close(self) -> None:
        for pid in [*self.ranks().values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()
