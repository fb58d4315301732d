"""Kill a batch again and again, at random moments, and see that every answer is there once.

    python tests/stress/batch_kills.py [--kills 50] [--records 2000] [--seed N] [--scripted] [--folder DIR]

Each start is two ranks (dp=2) of the toy on this machine's CPU; with --scripted it is three processes over a scripted
engine that share the input. A random process of them gets SIGKILL, or now and then SIGTERM, at a random moment: one
time in five within seconds of the start, else after a random number of new answers, few enough that the batch outlasts
all kills. After each kill the parts may only have gained answers. In the end it runs to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "multi")]

from batch_work import answers_in, expected, write_records  # noqa: E402
from test_failures import Run, is_running  # noqa: E402

TOY = ["batch", "model=tiny", "cluster.device=cpu", "generation=greedy", "generation.max_new_tokens=4", "job.grace_s=1"]
ENGINE = ["backend=engine", "kernels=reference", "engine.max_running=4", "engine.cache_tokens=4096"]
PLAN = ["plan=dp_tp", "plan.dp=2", "plan.tp=1"]
LONGEST_START_S = 6.0
"""The latest moment of a kill that does not wait for an answer."""


class Stress:
    """One batch and what is done to it."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given, self._folder = given, folder
        self._chance = random.Random(given.seed)
        self._input = write_records(folder / "in.jsonl", given.records)
        self._output = folder / "out.jsonl"
        self._known: set[str] = set()

    def run(self) -> None:
        """All of it; AssertionError if an answer is lost or repeated."""
        for kill in range(self._given.kills):
            assert not self._output.exists(), f"complete after {kill} kills: give more records"
            self._live_and_die(kill)
            answered = self._answered()
            assert self._known <= answered, f"lost: {sorted(self._known - answered)[:10]}"
            self._known = answered
            print(f"kill {kill + 1}: {len(answered)} answers", flush=True)
        while not Path(f"{self._output}.manifest.json").exists():
            runs = self._start()
            statuses = [run.process.wait(timeout=3600) for run in runs]
            assert statuses == [0] * len(runs), [run.err for run in runs]
        said = answers_in(self._output)
        assert list(said) == list(expected(self._given.records)), "ids in are not ids out"
        if self._given.scripted:
            assert said == expected(self._given.records)
        print(f"{len(said)} ids in, {len(said)} ids out, none twice", flush=True)

    def _start(self) -> list[Run]:
        if not self._given.scripted:
            words = [*TOY, *ENGINE, *PLAN, f"job.input={self._input}", f"job.output={self._output}"]
            return [self._run("0", [sys.executable, "-m", "gptoss_dist", *words])]
        program = [sys.executable, str(ROOT / "tests" / "batch_work.py"), str(self._input), str(self._output)]
        return [self._run(str(number), [*program, f"task{number}", "0.02", "2"]) for number in range(3)]

    def _run(self, name: str, command: list[str]) -> Run:
        (self._folder / name).mkdir(exist_ok=True)
        return Run(command, self._folder / name)

    def _live_and_die(self, kill: int) -> None:
        runs = self._start()
        try:
            self._live(runs, kill)
            victims = [pid for run in runs for pid in [*run.ranks().values(), run.process.pid] if is_running(pid)]
            if victims:
                signum = signal.SIGTERM if self._chance.random() < 0.2 else signal.SIGKILL
                os.kill(self._chance.choice(victims), signum)
            self._let_it_end(runs)
        finally:
            for run in runs:
                ranks = run.ranks()
                run.close()
                gone_by = time.monotonic() + 10
                while any(is_running(pid) for pid in ranks.values()):
                    assert time.monotonic() < gone_by, f"kill {kill}: ranks outlive their run"
                    time.sleep(0.01)

    def _live(self, runs: list[Run], kill: int) -> None:
        """Until a moment drawn at random; on the average the kills to come leave as many answers to each."""
        left = self._given.records - len(self._known)
        most = len(self._known) + self._chance.uniform(0, 1.5) * left / (self._given.kills - kill + 1)
        waits = self._chance.random() < 0.8
        limit_s = 120.0 if waits else self._chance.uniform(0, LONGEST_START_S)
        end = time.monotonic() + limit_s
        while len(self._answered()) <= most and any(run.process.poll() is None for run in runs):
            if time.monotonic() >= end:
                assert not waits, [run.err for run in runs]
                return
            time.sleep(0.01)

    def _let_it_end(self, runs: list[Run]) -> None:
        """Ranks end by themselves after one was killed; the other two processes go on for a while, and die too."""
        if self._given.scripted:
            time.sleep(self._chance.uniform(0.0, 2.0))
            return
        try:
            runs[0].process.wait(timeout=60)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"a killed rank did not end the run: {runs[0].err}") from error

    def _answered(self) -> set[str]:
        names = set(answers_in(self._output)) if self._output.exists() else set()
        for part in Path(f"{self._output}.parts").glob("part-*"):
            for line in part.read_bytes().split(b"\n")[:-1]:
                names.add(json.loads(line)["custom_id"])
        return names


def main() -> None:
    """Read the words, and keep the folder only if it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="gptoss-batch-"))
    folder.mkdir(exist_ok=True)
    print(f"seed {given.seed}, in {folder}", flush=True)
    if not given.scripted:
        subprocess.run([sys.executable, "-m", "gptoss_dist", "tiny"], check=True)  # trained before anything is killed
    Stress(given, folder).run()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
