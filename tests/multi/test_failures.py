"""What ends a run early, through the program's own doors: all ranks go, the cause is said once, nothing hangs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import SMALL
from plan_ranks import WordRanks, part_ways
from runtime_ranks import Ranks
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.multi

ROOT = Path(__file__).parents[2]
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2"]
DOORS = {
    "spawn": [sys.executable, "-m", "gptoss_dist"],
    "torchrun": [*TORCHRUN, str(ROOT / "launch" / "main.py")],
}
END_S = 90.0
"""From the cause to the end of the last rank."""
THREE_HEADS = dataclasses.replace(SMALL, heads=6, kv_heads=3, vocab=510)
VANISHED = "its process ended without a word"

DEFECT = """
import os, sys
from gptoss_dist.cli import main
from gptoss_dist.engine.transformers_engine import TransformersEngine

advance = TransformersEngine._advance

def fails(self, sequence):
    if os.environ["RANK"] == "1" and sequence.count == 3:
        raise RuntimeError("a defect")
    return advance(self, sequence)

TransformersEngine._advance = fails
sys.exit(main())
"""


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie; in a container nobody may collect it."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Run:
    """A command with its output in files, and the ranks it started."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._out, self._err = folder / "out", folder / "err"
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**environ, "OMP_NUM_THREADS": "1"}
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ranks(self) -> dict[int, int]:
        """Rank → process id of the children that a launcher has told a rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or none of ours
                if f"\nPPid:\t{self.process.pid}\n" not in (folder / "status").read_text():
                    continue
                variables = (folder / "environ").read_bytes().split(b"\0")
                found |= {int(one[5:]): int(folder.name) for one in variables if one.startswith(b"RANK=")}
        return found

    def wait_until_it_writes(self) -> dict[int, int]:
        """Wait for the first streamed tokens; the ranks."""
        deadline = time.monotonic() + 120
        while not self.out:
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.05)
        ranks = self.ranks()
        assert sorted(ranks) == [0, 1]
        return ranks

    def status(self, within_s: float = END_S) -> int:
        return self.process.wait(timeout=within_s)

    def close(self) -> None:
        for pid in [*self.ranks().values(), self.process.pid]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(door: str, *words: str) -> Run:
        runs.append(Run([*DOORS[door], *words], tmp_path))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def endless(random_toy: Path) -> tuple[str, ...]:
    """Words for thousands of tokens that mean nothing."""
    words = ("generate", "model=tiny", f"model.path={random_toy}", "plan=tp", "cluster.device=cpu")
    return (*words, "job.template=raw", "prompt=On and on", "generation.max_new_tokens=4000")


@pytest.fixture(scope="module")
def endless_replicas(endless) -> tuple[str, ...]:
    """The same on two replicas, of which the second has nothing to do."""
    return tuple("plan=dp_tp" if word == "plan=tp" else word for word in endless)


@pytest.fixture
def broken(make_checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "broken"))


def truncate(folder: Path) -> Path:
    file = sorted(folder.glob("*.safetensors"))[2]
    file.write_bytes(file.read_bytes()[:-100])
    return file


def corrupt(folder: Path) -> Path:
    file = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[8:40] = os.urandom(32)
    file.write_bytes(content)
    return file


def lose(folder: Path) -> Path:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.unlink()
    return file


def confuse(folder: Path) -> Path:
    file = folder / "config.json"
    content = json.loads(file.read_text()) | {"num_hidden_layers": 3}
    del content["layer_types"]
    file.write_text(json.dumps(content))
    return file


def of_broken(folder: Path) -> list[str]:
    words = ["generate", "model=tiny", f"model.path={folder}", "plan=tp", "cluster.device=cpu"]
    return [*words, "prompt=Hello", "job.template=raw"]


@pytest.mark.parametrize(("words", "door", "rank"), [("endless", "torchrun", 0), ("endless_replicas", "spawn", 1)])
def test_a_killed_rank_is_named_once_and_ends_the_run(start, request, words: str, door: str, rank: int):
    run = start(door, *request.getfixturevalue(words))
    pids = run.wait_until_it_writes()
    os.kill(pids[rank], signal.SIGKILL)
    assert run.status() == 1
    assert run.err.count(f"rank {rank}: {VANISHED}") == 1
    assert run.err.count(VANISHED) == 1
    assert "Traceback" not in run.err.partition("torch/distributed/elastic")[0]
    assert not any(is_running(pid) for pid in pids.values())


@pytest.mark.parametrize(
    ("words", "signum", "status"),
    [("endless", signal.SIGTERM, 143), ("endless_replicas", signal.SIGINT, 130)],
)
def test_a_signal_to_the_program_ends_its_ranks(start, request, words: str, signum: signal.Signals, status: int):
    run = start("spawn", *request.getfixturevalue(words))
    pids = run.wait_until_it_writes()
    run.process.send_signal(signum)
    assert run.status() == status
    assert run.err.count(f"stopped by {signum.name}") == 1
    assert "Traceback" not in run.err
    assert not any(is_running(pid) for pid in pids.values())


def test_a_defect_on_one_rank_is_shown_once_with_its_rank(tmp_path: Path, endless):
    program = tmp_path / "program.py"
    program.write_text(DEFECT)
    run = Run([*TORCHRUN, str(program), *endless], tmp_path)
    try:
        pids = run.wait_until_it_writes()
        assert run.status() == 1
    finally:
        run.close()
    assert run.err.count("rank 1: unexpected failure\nTraceback") == 1
    assert run.err.count("RuntimeError: a defect") == 1
    assert "rank 0:" not in run.err
    assert not any(is_running(pid) for pid in pids.values())


@pytest.mark.parametrize(("door", "harm"), [("spawn", truncate), ("torchrun", lose)])
def test_a_broken_file_is_named_once_by_every_launcher(start, broken: Path, door: str, harm):
    file = harm(broken)
    run = start(door, *of_broken(broken))
    assert run.status(within_s=END_S) == 1
    assert run.err.count(f"{file}: ") == 1
    assert run.out == ""
    assert "Traceback" not in run.err.partition("torch/distributed/elastic")[0]


@pytest.mark.parametrize("harm", [truncate, corrupt, lose, confuse])
def test_a_broken_file_ends_ranks_that_nobody_watches(broken: Path, tmp_path: Path, harm):
    file = harm(broken)
    ranks = WordRanks([of_broken(broken)] * 2, tmp_path / "ranks")
    assert ranks.statuses(END_S) == [1, 1]
    said = ranks.err().strip().splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("rank ")
    if harm is confuse:
        assert "model.layers.3.input_layernorm.weight, for which config.json has no place" in said[0]
    else:
        assert said[0].partition(": ")[2].startswith(f"{file}: ")


def test_a_file_that_only_rank_0_reads_ends_all(endless, tmp_path: Path):
    words = [word for word in endless if not word.startswith("prompt=")]
    ranks = WordRanks([[*words, "job.file=/no/such/prompt"]] * 2, tmp_path)
    assert ranks.statuses(END_S) == [1, 1]
    assert ranks.err().count("rank 0: job.file=/no/such/prompt: cannot be read") == 1
    assert "Traceback" not in ranks.err()


@pytest.mark.parametrize("door", ["spawn", "torchrun"])
def test_a_mistyped_key_is_one_line_and_no_traceback(start, endless, door: str):
    run = start(door, *endless, "generation.temprature=1")
    status = run.status(within_s=END_S)
    assert status == 2 if door == "spawn" else status != 0
    line = "generation.temprature=1: there is no key generation.temprature. Did you mean generation.temperature?"
    assert run.err.count(line) == 1
    assert run.out == ""
    if door == "spawn":
        assert run.err == f"error: {line}\n"


def test_a_rank_with_other_words_is_named_with_what_differs(endless, tmp_path: Path):
    ranks = WordRanks([list(endless), [*endless, "generation.max_new_tokens=3999"]], tmp_path)
    assert ranks.statuses(END_S) == [1, 1]
    said = ranks.err().strip().splitlines()
    assert len(said) == 1, said
    assert "generation.max_new_tokens: rank 1 has 3999; rank 0 has 4000" in said[0]


def test_a_rank_whose_copy_of_the_weights_is_another_is_named(make_checkpoint, endless, tmp_path: Path):
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        shutil.copytree(make_checkpoint(), home / "weights")
    edit_one_weight(homes[1] / "weights")
    words = [word for word in endless if not word.startswith("model.path=")] + ["model.path=weights"]
    ranks = WordRanks([words] * 2, tmp_path / "ranks", homes)
    assert ranks.statuses(END_S) == [1, 1]
    said = ranks.err().strip().splitlines()
    assert len(said) == 1, said
    assert "the checkpoint differs between ranks: tensor contents: rank 1 has " in said[0]


def edit_one_weight(folder: Path) -> None:
    """Another revision of the same model: one value of one matrix differs."""
    name = "model.layers.1.self_attn.o_proj.weight"
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name][0, 0] += 1
    save_file(tensors, file)


def test_a_reader_that_leaves_ends_the_run_in_one_line(endless, tmp_path: Path):
    program = f"{shlex.join([*DOORS['spawn'], *endless])} 2>{tmp_path / 'err'}"
    command = f"{program} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "141\n"
    said = (tmp_path / "err").read_text()
    assert said.count("closed it before the end") == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_ranks_that_generate_different_tokens_are_named_and_do_not_hang(make_checkpoint, tmp_path: Path):
    ranks = Ranks(3, partial(part_ways, str(make_checkpoint(THREE_HEADS))), tmp_path)
    assert ranks.statuses(END_S) == [1, 1, 1]
    assert ranks.printed().count("ranks generate different tokens: rank 1 has 9 tokens") == 1
    assert "Traceback" not in ranks.printed()


def test_a_rank_with_a_mistyped_word_ends_the_others_too(endless, tmp_path: Path):
    ranks = WordRanks([list(endless), [*endless, "plan=tq"]], tmp_path)
    assert ranks.statuses(END_S) == [2, 2]
    assert ranks.err().count("rank 1: plan=tq: no such choice.") == 1


def test_a_world_of_another_size_names_both_numbers_and_the_command(endless, tmp_path: Path):
    ranks = WordRanks([[*endless, "plan.tp=4"]] * 2, tmp_path)
    assert ranks.statuses(END_S) == [2, 2]
    said = ranks.err().strip().splitlines()
    assert len(said) == 1, said
    assert "needs 4 ranks" in said[0]
    assert "2 were started" in said[0]
    assert "torchrun --standalone --nproc_per_node=4" in said[0]


def test_what_the_context_cannot_hold_ends_all_ranks_with_the_numbers(endless, tmp_path: Path):
    ranks = WordRanks([[*endless, "generation.max_new_tokens=4096"]] * 2, tmp_path)
    assert ranks.statuses(END_S) == [1, 1]
    assert ranks.err().count("up to 4096 new ones are 4099, and the model's context is 4096") == 1
    assert "loaded" not in ranks.err(), "its config was enough"
