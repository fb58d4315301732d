"""The program that measures on GPUs: limits hold, nothing is left running, and every result is kept as it comes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "gpu"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    return importlib.import_module("measure")


@pytest.fixture
def stages(measure):
    return importlib.import_module("measure_stages")


def place_in(stages, folder: Path, dry: bool = False):
    return stages.Place(GPU.parents[1], folder, 2, None, None, dry)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_of_a_stage_that_hangs_no_process_is_left(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_GRACE_S", 0.5)
    told = tmp_path / "pids"
    deaf = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = deaf + f"open({str(told)!r}, 'a').write(str(os.getpid()) + '\\n'); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); "
    process = subprocess.Popen([sys.executable, "-c", parent + child], start_new_session=True)
    while not told.exists() or len(told.read_text().split()) < 2:
        time.sleep(0.02)
    assert measure.finish(process, 0.1) == "stopped after 0 s"
    pids = [int(pid) for pid in told.read_text().split()]
    assert process.pid in pids
    while any(map(alive, pids)):
        time.sleep(0.02)


def test_a_failure_stops_only_what_needs_it(measure, stages, tmp_path, capsys):
    runner = measure.Runner(tmp_path / "out", place_in(stages, tmp_path), 100)

    def stage(name: str, code: str, *needs: str):
        return stages.Stage(name, 60, (sys.executable, "-c", code), needs)

    runner.run(stage("first", "print('no luck'); raise SystemExit(3)"))
    runner.run(stage("second", "", "first"))
    runner.run(stage("third", "print('{\"found\": 7}'); print('and more')", "absent"))
    assert [(one.status, one.result) for one in runner.outcomes] == [
        (3, None),
        ("not run: first failed", None),
        (0, {"found": 7}),
    ]
    assert "no luck" in capsys.readouterr().out
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["stage"], one["result"]) for one in kept] == [("first", None), ("third", {"found": 7})]
    assert "and more" in (tmp_path / "out" / "measure.log").read_text()


def test_without_time_nothing_is_begun(measure, stages, tmp_path):
    runner = measure.Runner(tmp_path / "out", place_in(stages, tmp_path), 20)
    runner.run(stages.Stage("late", 60, (sys.executable, "-c", "")))
    assert runner.outcomes[0].status == "not run: no time left"


@pytest.mark.parametrize("dry", [False, True])
def test_every_stage_of_every_set_is_there_and_runs_a_program_that_is(stages, tmp_path, dry):
    place = place_in(stages, tmp_path, dry)
    for name in stages.SETS:
        made = stages.stages_of([name], place)
        assert [stage.name for stage in made] == [one for one in stages.SETS[name] if one != "packages"]
        for stage in made:
            programs = [word for word in stage.command if word.endswith(".py")]
            assert all(Path(word).is_file() for word in programs)
    with pytest.raises(KeyError, match="nothing: no such stage"):
        stages.stages_of(["nothing"], place)


def test_wheels_are_installed_first_where_there_are_some(stages, tmp_path):
    (tmp_path / "one.whl").touch()
    place = stages.Place(GPU.parents[1], tmp_path, 1, tmp_path, tmp_path, False)
    first = stages.stages_of(["right"], place)[0]
    assert first.name == "packages"
    assert first.command[-1] == str(tmp_path / "one.whl")
    assert str(place.site) in place.environment()["PYTHONPATH"]
    assert place.environment()["TIKTOKEN_ENCODINGS_BASE"] == str(tmp_path)
