from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from gptoss_dist.cli import main, take_apart
from gptoss_dist.config import choices, compose_run
from gptoss_dist.help import for_slurm, text
from gptoss_dist.schema.run import GROUPS, JOBS
from gptoss_dist.schema.slurm import SlurmConf


def section(title: str) -> list[str]:
    lines = text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title)) + 1
    return lines[start : lines.index("", start)]


def test_every_job_every_group_and_every_choice_is_named():
    assert [line.split()[0] for line in section("Jobs")] == list(JOBS)
    groups = {line.split()[0]: line for line in section("Groups")}
    assert set(groups) == set(GROUPS) - {"job"}
    for group, line in groups.items():
        assert line.split(maxsplit=1)[1] == ", ".join(choices(group))


@pytest.mark.parametrize("line", section("Jobs"))
def test_the_example_of_a_job_composes_to_that_job(line):
    example = re.search(r"gptoss (.*)$", line)
    assert example is not None
    words = take_apart(shlex.split(example[1]))
    assert compose_run(words.overrides, words.conf).job.name == line.split()[0]


@pytest.mark.parametrize("line", section("Usual overrides"))
def test_the_usual_overrides_compose(line):
    words = re.split(r"\s{2,}", line.strip())[0]
    compose_run(words.split())


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_names_each_of_its_keys_and_flags(job):
    shown = text(job)
    assert shown.startswith(f"gptoss {job}: ")
    for one in dataclasses.fields(JOBS[job]):
        if one.name == "name":
            continue
        assert re.search(rf"^  {one.name}: ", shown, re.MULTILINE), one.name
        assert f"--{one.name.replace('_', '-')}" in shown
    assert "--json" in shown
    assert "defaults" not in shown


@pytest.mark.parametrize("job", JOBS)
def test_each_flag_that_help_names_is_a_key(job):
    flags = re.findall(r"--([a-z-]+)", text(job).partition("Flags: ")[2].partition("Groups")[0])
    assert {"json", "conf"} < set(flags)
    for flag in set(flags) - {"json", "conf"}:
        words = take_apart([job, f"--{flag}=null"])
        assert words.overrides[-1].removeprefix("job.").removesuffix("=null") in {
            one.name for one in dataclasses.fields(JOBS[job])
        }


@pytest.mark.parametrize(
    ("argv", "topic"),
    [
        (["--help"], ""),
        (["-h"], ""),
        ([], ""),
        (["--json", "--help"], ""),
        (["plan", "--help"], "plan"),
        (["--help", "plan"], "plan"),
        (["synth", "--out", "x", "-h"], "synth"),
        (["plan=tp", "--help"], "generate"),
        (["job=tiny", "--help"], "tiny"),
    ],
)
def test_help_from_the_program(argv, topic, capsys, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert main(argv) == 0
    assert capsys.readouterr() == (text(topic) + "\n", "")


@pytest.mark.parametrize("argv", [["slurm"], ["slurm", "--help"], ["slurm", "generate", "-h"]])
def test_help_of_slurm_names_each_of_its_keys(argv, capsys, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown == for_slurm() + "\n"
    for one in dataclasses.fields(SlurmConf):
        assert one.name == "name" or re.search(rf"^  {one.name}: ", shown, re.MULTILINE), one.name


def test_lines_fit_a_terminal():
    assert max(map(len, for_slurm().splitlines())) <= 120
    for topic in ("", *JOBS):
        assert max(map(len, text(topic).splitlines())) <= 120
