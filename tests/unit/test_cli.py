from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_dist
from gptoss_dist import help as help_texts
from gptoss_dist.cli import Words, main, take_apart
from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_", "TORCHELASTIC_", "MASTER_")


def environment(**extra: str) -> dict[str, str]:
    """Without a launcher and without a GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", **extra}


def run_program(*argv: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptoss_dist", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**extra), timeout=120, input="")


@pytest.fixture
def _alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(_LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# ── the words of every door ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "overrides"),
    [
        ([], []),
        (["generate"], ["job=generate"]),
        (["plan", "plan=tp"], ["job=plan", "plan=tp"]),
        (["plan=tp", "plan"], ["job=plan", "plan=tp"]),
        (["job=plan", "plan=tp"], ["job=plan", "plan=tp"]),
        (["plan", "job=plan"], ["job=plan"]),
        (["prompt=hi there"], ["prompt=hi there"]),
        (["prompt=a=b --c"], ["prompt=a=b --c"]),
        (["synth", "--size", "20b", "--out", "a dir"], ["job=synth", "job.size=20b", "job.out=a dir"]),
        (["synth", "--size=20b", "--out=a=b"], ["job=synth", "job.size=20b", "job.out=a=b"]),
        (["synth", "--layers", "-3"], ["job=synth", "job.layers=-3"]),
        (["generate", "--builtin-tools", "[python]"], ["job=generate", "job.builtin_tools=[python]"]),
        (["generate", "--file", "-"], ["job=generate", "job.file=-"]),
        (["generate", "--prompt", "Hi, you"], ["job=generate", "prompt=Hi, you"]),
        (["--model", "tiny", "chat", "--plan=tp"], ["job=chat", "model=tiny", "plan=tp"]),
        (["batch", "--backend", "engine", "--window", "3"], ["job=batch", "backend=engine", "job.window=3"]),
        (["chat", "--job", "serve"], ["job=chat", "job.job=serve"]),
        (["generate", "--system="], ["job=generate", "job.system="]),
        (["prefetch", "vocab"], ["job=prefetch", "job.what=vocab"]),
        (["prefetch", "cluster.device=cpu", "vocab"], ["job=prefetch", "cluster.device=cpu", "job.what=vocab"]),
        (["hello"], ["hello"]),
    ],
)
def test_words_become_overrides(argv, overrides):
    assert take_apart(argv) == Words(overrides)


@pytest.mark.parametrize(
    "argv", [["--json", "plan"], ["plan", "--json"], ["plan", "--json", "--json"], ["plan", "plan=tp", "--json"]]
)
def test_json_may_stand_anywhere(argv):
    words = take_apart(argv)
    assert words.as_json
    assert words.overrides[0] == "job=plan"


@pytest.mark.parametrize(
    "argv", [["--conf", "D", "plan"], ["plan", "--conf=D"], ["plan", "--conf", "X", "--conf", "D"]]
)
def test_conf_is_a_folder_and_no_key(argv):
    assert take_apart(argv) == Words(["job=plan"], conf=Path("D"))


def test_conf_knows_ones_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert take_apart(["--conf=~/conf"]).conf == Path("/home/ada/conf")


@pytest.mark.parametrize(
    "argv", [["--file"], ["--file", "--json"], ["--conf"], ["--conf="], ["--conf", "--json"], ["--"]]
)
def test_a_flag_without_a_value(argv):
    with pytest.raises(ConfigError, match=rf"^{argv[0].rstrip('=')} needs a value"):
        take_apart(argv)


@pytest.mark.parametrize("argv", [["plan", "generate"], ["plan", "job=tiny"], ["job=plan", "tiny"]])
def test_one_run_does_one_job(argv):
    with pytest.raises(ConfigError, match=r"plan and .* are two jobs"):
        take_apart(argv)


@pytest.mark.parametrize("word", ["--json=true", "--help=generate", "--version=1"])
def test_a_flag_that_takes_no_value(word):
    with pytest.raises(ConfigError, match=rf"^{word}: {word.partition('=')[0]} takes no value\."):
        take_apart(["plan", word])


def test_flags_reach_the_job_with_dashes_for_underscores():
    words = take_apart(["generate", "--show-analysis", "false", "--date", "2025-01-01", "--tools=x, y.json"])
    job = compose_run(words.overrides).job
    assert (job.show_analysis, job.date, job.tools) == (False, "2025-01-01", "x, y.json")


@pytest.mark.parametrize(
    ("argv", "force"),
    [
        (["tiny", "--force"], True),
        (["tiny", "--force", "false"], False),
        (["tiny"], False),
        (["tiny", "--force=true"], True),
    ],
)
def test_a_switch_needs_no_value(argv, force: bool):
    assert compose_run(take_apart(["tiny", *argv]).overrides).job.force is force


@pytest.mark.parametrize("value", ["1", "prompt=hi", "[", "a, b"])
def test_a_flag_of_no_key_is_named_whatever_it_swallowed(value):
    with pytest.raises(ConfigError, match=r"^job\.nosuch=.*: there is no key job\.nosuch\. job has: file, messages"):
        compose_run(take_apart(["generate", "--nosuch", value]).overrides)


# ── small jobs ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("_alone")
def test_prefetch_says_where_the_vocabulary_is(capsys):
    assert main(["prefetch", "vocab", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["vocab"]).is_file()
    assert main(["prefetch", "vocab"]) == 0
    assert f"vocab: {found['vocab']}" in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["prefetch", "weights"], "gptoss prefetch weights: job.out is missing, the folder to fill: --out DIR."),
        (["synth"], "gptoss synth needs a folder to write: --out DIR."),
        (["synth", "--size", "99b", "--out", "OUT"], "99b"),
        (["plan", "model=gpt_oss_120b", "plan=tp", "plan.tp=16"], "8 key-value heads"),
    ],
)
def test_what_a_small_job_cannot_do_is_one_line_and_status_2(argv, said, capsys, tmp_path):
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_errors_of_the_second_kind_end_with_status_1(tmp_path):
    done = run_program("plan", f"model.path={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {tmp_path}/config\.json: no such file\..*\n", done.stderr)


def test_the_version_is_said_without_loading_torch():
    program = "import sys; from gptoss_dist.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for argv in (["--version"], ["generate", "--version", "prompt=Hi"]):
        command = [sys.executable, "-c", program, *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=True)
        assert done.stdout == f"gptoss-dist {gptoss_dist.__version__}\n0 False\n"


# ── world size ───────────────────────────────────────────────────────────────────────────────────────────────────────

_ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("words", "numbers", "count"),
    [
        (["plan=tp", "plan.tp=4"], ("4 ranks", "1 was started"), 4),
        (["plan=dp_tp", "plan.tp=2"], ("4 ranks", "plan.dp=2 × plan.tp=2", "1 was started"), 4),
        (["plan=dp_tp", "plan.dp=3"], ("plan.dp=3", "ranks started is 1"), 3),
    ],
)
def test_a_world_that_disagrees_with_the_plan_names_both_numbers_and_the_command(words, numbers, count):
    done = run_program("generate", *words, "prompt=it's, {me}", **_ONE_RANK)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for part in numbers:
        assert part in done.stderr
    assert f"torchrun --standalone --nproc_per_node={count} -m gptoss_dist generate {words[0]}" in done.stderr
    assert "'prompt=it'\"'\"'s, {me}'" in done.stderr  # as a shell reads it


_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "gptoss_dist"]


@pytest.mark.multi
@pytest.mark.parametrize("words", [[], ["--help"], ["generate", "--help"]])
def test_ranks_that_are_asked_for_help_give_it_once(words):
    done = subprocess.run(
        [*_TORCHRUN, *words], capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"), timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_program(*words).stdout
    assert done.stdout.startswith("gptoss generate: one answer" if "generate" in words else "gptoss JOB")


@pytest.mark.multi
def test_two_ranks_of_torchrun_with_a_plan_of_four_say_it_once():
    done = subprocess.run(
        [*_TORCHRUN, "generate", "model=tiny", "plan=tp", "plan.tp=4", "prompt=hi"],
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("plan=tp needs 4 ranks (plan.dp=1 × plan.tp=4), and 2 were started") == 1
    command = "torchrun --standalone --nproc_per_node=4 -m gptoss_dist generate model=tiny plan=tp plan.tp=4 prompt=hi"
    assert done.stderr.count(command) == 1


def test_variables_that_contradict_each_other_are_one_line():
    done = run_program("plan", RANK="5", WORLD_SIZE="2", LOCAL_RANK="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "RANK=5 must be below WORLD_SIZE=2" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["--multirun", "-m", "--config-dir=conf", "-cd", "--config-name", "--cfg", "--info"])
def test_hydras_own_flags_are_told_apart_from_typing_errors(word):
    with pytest.raises(ConfigError, match=rf"{word}: Hydra's own flags do nothing here.*--conf DIR.*sweep.py"):
        take_apart(["generate", word, "model=tiny"])


@pytest.mark.parametrize("word", ["~generation.seed", "~generation.seed=1", "+a=1", "++generation.seed=1"])
@pytest.mark.usefixtures("_alone")
def test_keys_are_neither_added_nor_removed(word, capsys):
    assert main(["generate", word]) == 2
    assert "keys are neither added nor removed here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["help"], help_texts.text()),
        (["--help"], help_texts.text()),
        (["help", "generate"], help_texts.text("generate")),
        (["-h", "plan"], help_texts.text("plan")),
        (["help", "slurm"], help_texts.for_slurm()),
        (["--help", "slurm"], help_texts.for_slurm()),
        (["slurm", "--help"], help_texts.for_slurm()),
    ],
)
@pytest.mark.usefixtures("_alone")
def test_help_may_come_first(asked, said, capsys):
    assert main(asked) == 0
    assert capsys.readouterr().out == said + "\n"


INTERRUPTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["generate", "prompt=x"]
"""
DOORS = [
    'runpy.run_module("gptoss_dist", run_name="__main__")',
    f'runpy.run_path({str(Path(__file__).parents[2] / "launch" / "main.py")!r}, run_name="__main__")',
]


@pytest.mark.parametrize("door", DOORS)
def test_ctrl_c_while_the_program_is_read_is_130(door):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED + door], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
