"""What only GPUs can tell, stage by stage: `measure_stages` says what there is, README.md how to go about it.

    python3 tests/gpu/measure.py OUT STAGE [STAGE …] [--seconds 570] [--gpus N] [--packages DIR] [--vocabulary DIR]
                                 [--work /dev/shm] [--dry-run]

Stages run one after the other, each in a process of its own with a time limit, the tighter of its own and of what is
left of `--seconds`; one that fails does not stop those that do not need it, and of one that hangs no process is left.
Everything they print goes to OUT/measure.log as it comes; how each ended is printed at once, is added to
OUT/results.jsonl with the JSON object that it printed last, and stands in a table at the end. Status 1 if any failed.

Needs nothing but Python itself; what the stages need can be brought along as wheels (`--packages`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from measure_stages import Place, Stage, stages_of

ROOT = Path(__file__).resolve().parents[2]
_GRACE_S = 12.0
"""Between asking a stage to end, upon which a benchmark prints what it has, and killing it."""
_WORTH_S = 15.0
"""With less time left no stage is begun."""
_SHOWN_LINES = 12
"""Of the log of a stage that failed."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: str
    status: int | str
    """Its exit status, or why there is none."""
    seconds: float
    result: object
    """What it printed last, where that is JSON."""

    @property
    def good(self) -> bool:
        """Whether others may build on it."""
        return self.status == 0


class Runner:
    """Runs stages within a time."""

    def __init__(self, out: Path, place: Place, seconds: float) -> None:
        """The clock starts now."""
        out.mkdir(parents=True, exist_ok=True)
        self._log, self._results = out / "measure.log", out / "results.jsonl"
        self._place, self._end = place, time.monotonic() + seconds
        self.outcomes: list[Outcome] = []

    def run(self, stage: Stage) -> None:
        """Run one stage, or say why not."""
        failed = {one.stage for one in self.outcomes if not one.good}
        limit = min(stage.seconds, self._end - time.monotonic() - _GRACE_S)
        if missing := failed.intersection(stage.needs):
            outcome = Outcome(stage.name, f"not run: {', '.join(sorted(missing))} failed", 0.0, None)
        elif limit < _WORTH_S:
            outcome = Outcome(stage.name, "not run: no time left", 0.0, None)
        else:
            outcome = self._run(stage, limit)
        self.outcomes.append(outcome)
        print(line_of(outcome), flush=True)
        if isinstance(outcome.status, str) or outcome.good:
            return
        print("\n".join(f"    {line}" for line in self._tail().splitlines()[-_SHOWN_LINES:]), flush=True)

    def _run(self, stage: Stage, limit: float) -> Outcome:
        begun = time.monotonic()
        with self._log.open("ab") as log:
            log.write(f"\n===== {stage.name} (up to {limit:.0f} s): {' '.join(stage.command)}\n".encode())
            log.flush()
            self._start = log.tell()
            process = subprocess.Popen(
                stage.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**self._place.environment(), **dict(stage.environment)},
                start_new_session=True,
            )
            status = finish(process, limit)
        seconds = round(time.monotonic() - begun, 1)
        outcome = Outcome(stage.name, status, seconds, last_json(self._tail()))
        with self._results.open("a", encoding="utf-8") as results:
            results.write(json.dumps(asdict(outcome)) + "\n")
        return outcome

    def _tail(self) -> str:
        """What the last stage printed."""
        with self._log.open("rb") as log:
            log.seek(self._start)
            return log.read().decode(errors="replace")


def finish(process: subprocess.Popen[bytes], limit: float) -> int | str:
    """The status of a process that has `limit` seconds; nothing that it started is left afterwards."""
    late = ""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        late = f"stopped after {limit:.0f} s"
        family = descendants(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        for pid in {*family, *descendants(process.pid), process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whoever outlived the one that started it
    return late or process.returncode


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started, whatever session they are in."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found, rest = [], [pid]
    while rest:
        rest = [child for one in rest for child in parents.get(one, [])]
        found += rest
    return found


def last_json(text: str) -> object:
    """The object of the last line that is one; None without one."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)
    return None


def line_of(outcome: Outcome) -> str:
    """One line."""
    said = "ok" if outcome.good else f"status {outcome.status}" if isinstance(outcome.status, int) else outcome.status
    return f"{outcome.stage:16} {outcome.seconds:7.1f} s  {said}"


def main() -> int:
    """Run the stages that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for the log and the results")
    parser.add_argument("stages", nargs="+", help="stages, or sets of them: see measure_stages.py")
    parser.add_argument("--seconds", type=float, default=570.0, help="for everything together")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, and ranks of the stages with several")
    parser.add_argument("--packages", type=Path, help="a folder of wheels to install into the work folder first")
    parser.add_argument("--vocabulary", type=Path, help="the folder that holds o200k_base.tiktoken")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="where random checkpoints go")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU: the same stages in a few minutes")
    given = parser.parse_args()
    place = Place(ROOT, given.work, given.gpus, given.packages, given.vocabulary, given.dry_run)
    try:
        stages = stages_of(given.stages, place)
    except KeyError as error:
        parser.error(str(error.args[0]))
    runner = Runner(given.out, place, given.seconds)
    for stage in stages:
        runner.run(stage)
    print("\n" + "\n".join(map(line_of, runner.outcomes)))
    return 0 if all(one.good for one in runner.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
