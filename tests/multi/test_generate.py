"""`job=generate` through every door: the same answer whatever the plan, said once, on rank 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from plan_ranks import LIBRARY, WordRanks, converse
from runtime_ranks import Ranks

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS, TinyConversation

pytestmark = pytest.mark.multi

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
RAW = ("job.template=raw", "prompt=One, two, three", "generation.max_new_tokens=12", "model.dtype=float32")
GREEDY = (*RAW, "generation.temperature=0")
SAMPLED = (*RAW, "generation.temperature=1")
BY_NAME = {one.name: one for one in CONVERSATIONS}
KEYS = ("final", "analysis", "commentary", "tool_calls", "finish_reason", "usage", "seed", "plan")


def doors(ranks: int) -> Mapping[str, list[str]]:
    """The beginning of a command for each way to start `ranks` ranks."""
    program = str(ROOT / "launch" / "main.py")
    return {
        "module": [sys.executable, "-m", "gptoss_dist"],
        "script": [str(BINARIES / "gptoss")],
        "torchrun": [str(BINARIES / "torchrun"), "--standalone", f"--nproc_per_node={ranks}", program],
        "accelerate": [
            *(str(BINARIES / "accelerate"), "launch", f"--config_file={ROOT / 'launch' / 'accelerate.yaml'}"),
            *(f"--num_processes={ranks}", program),
        ],
    }


def environment() -> dict[str, str]:
    """This process' own, without a launcher's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_", "OMP_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run(door: str, *words: str, ranks: int = 2, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [*doors(ranks)[door], "generate", "cluster.device=cpu", *words]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def hand_started(folder: Path, ranks: int, *words: str) -> list[str]:
    """What each of `ranks` ranks printed."""
    started = WordRanks([["generate", "cluster.device=cpu", *words]] * ranks, folder)
    assert started.statuses(within_s=120) == [0] * ranks, started.err()
    return [started.out(rank) for rank in range(ranks)]


def answer(text: str) -> dict[str, Any]:
    """The one JSON object that `--json` leaves on standard output."""
    assert text.count("\n") == 1, text
    content: dict[str, Any] = json.loads(text)
    return content


@pytest.fixture(scope="module")
def random_words(random_toy: Path) -> tuple[str, ...]:
    return "model=tiny", f"model.path={random_toy}"


@pytest.fixture(scope="module")
def alone(random_words) -> dict[str, Any]:
    """The greedy answer of one process without any launcher."""
    done = run("module", *random_words, *GREEDY, "plan=single", "--json")
    assert done.returncode == 0, done.stderr
    return answer(done.stdout)


@pytest.fixture(scope="module")
def toy() -> Path:
    """The trained toy, from this machine's cache."""
    return tiny_checkpoint()


def test_one_process_answers_with_one_object(alone: dict[str, Any]):
    assert set(KEYS) < set(alone)
    assert len(alone["final"]) > 12
    assert alone["finish_reason"] == "length"
    assert alone["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert alone["plan"] == {"name": "single", "dp": 1, "tp": 1}


@pytest.mark.parametrize(("door", "plan"), [("script", "tp"), ("torchrun", "ep"), ("accelerate", "tp_ep")])
def test_every_launcher_and_plan_gives_the_same_greedy_answer(alone, random_words, door: str, plan: str):
    done = run(door, *random_words, *GREEDY, f"plan={plan}", "--json")
    assert done.returncode == 0, done.stderr
    found = answer(done.stdout)
    assert found["final"] == alone["final"]
    assert found["plan"] == {"name": plan, "dp": 1, "tp": 2}
    if door == "script":
        assert done.stderr.count("+ torchrun --standalone --nproc_per_node=2 -m gptoss_dist generate ") == 1


@pytest.mark.parametrize(("ranks", "plan", "tp"), [(2, "dp_tp", 1), (4, "dp_tp", 2), (4, "tp", 4)])
def test_ranks_started_by_hand_give_it_too_and_rank_0_alone_prints(alone, random_words, tmp_path, ranks, plan, tp):
    first, *others = hand_started(tmp_path, ranks, *random_words, *GREEDY, f"plan={plan}", "--json")
    assert others == [""] * (ranks - 1)
    found = answer(first)
    assert found["final"] == alone["final"]
    assert (found["plan"]["dp"], found["plan"]["tp"]) == (ranks // tp, tp)


def test_a_drawn_seed_is_said_and_gives_the_same_again_and_another_seed_another(random_words, tmp_path: Path):
    words = (*random_words, *SAMPLED, "plan=tp", "--json")
    drawn = answer(hand_started(tmp_path / "drawn", 2, *words)[0])
    again, other = (
        answer(hand_started(tmp_path / str(seed), 2, *words, f"generation.seed={seed}")[0])
        for seed in (drawn["seed"], drawn["seed"] + 1)
    )
    assert again["seed"] == drawn["seed"] != other["seed"]
    assert again["final"] == drawn["final"] != other["final"]


def test_text_goes_to_standard_output_of_rank_0_and_all_else_to_standard_error(alone, random_words, tmp_path):
    assert hand_started(tmp_path, 2, *random_words, *GREEDY, "plan=tp") == [alone["final"] + "\n", ""]
    first, second = ((tmp_path / f"rank{rank}.err").read_text() for rank in range(2))
    assert first.count("Loading weights: 100%") == 1
    assert "[rank 0] weights by rank: " in first
    assert second == ""


def test_a_stop_text_ends_the_answer_on_every_rank(alone, random_words, tmp_path: Path):
    text = alone["final"]
    stop = next(one for place, one in enumerate(text) if place > 4 and one.isalpha())
    words = (*random_words, *GREEDY, "plan=tp", "--json", f"generation.stop=['{stop}']")
    found = answer(hand_started(tmp_path, 2, *words)[0])
    assert found["final"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def answers(toy: Path, tmp_path_factory) -> list[dict[str, Any]]:
    """What two ranks got for every conversation of the toy by the job, and for some of them by the library."""
    folder = tmp_path_factory.mktemp("conversations")
    ranks = Ranks(2, partial(converse, str(folder)), folder)
    assert ranks.statuses(within_s=150) == [0, 0], ranks.printed()
    return [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(2)]


def expected(one: TinyConversation) -> dict[str, Any]:
    return {
        "final": one.answer_text or None,
        "analysis": one.analysis,
        "calls": [{"name": name, "arguments": arguments} for name, arguments in one.tool_calls],
        "finish_reason": "tool_calls" if one.tool_calls else "stop",
    }


def given(found: Mapping[str, Any]) -> dict[str, Any]:
    calls = [{"name": call["name"], "arguments": call["arguments"]} for call in found["tool_calls"]]
    return {**{key: found[key] for key in ("final", "analysis", "finish_reason")}, "calls": calls}


@pytest.mark.parametrize("name", list(BY_NAME))
def test_the_toy_answers_as_it_was_taught_on_two_ranks(answers, name: str):
    first, second = (one[name] for one in answers)
    assert given(first) == expected(BY_NAME[name])
    assert second is None


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_gives_every_rank_the_same_answer(answers, name: str):
    first, second = (one[f"library {name}"] for one in answers)
    assert given(first) == expected(BY_NAME[name])
    assert first == second


def test_what_rank_0_refuses_is_refused_on_every_rank_and_the_next_call_works(answers):
    refusals = [one["refused"] for one in answers]
    assert refusals == [refusals[0]] * 2
    assert refusals[0].startswith("DoesNotFitError: request call-4: the prompt has 5000 tokens")
    assert len(answers[0]["afterwards"]) == 3
    assert answers[0]["afterwards"] == answers[1]["afterwards"]


def test_the_toy_s_conversations_hold_a_tool_call_and_the_answer_to_its_result():
    assert BY_NAME["weather_call"].tool_calls == (("get_weather", '{"city":"San Francisco"}'),)
    assert "20 degrees" in BY_NAME["weather_result"].answer_text


def test_a_tool_call_on_the_command_line(toy: Path, tmp_path: Path):
    call, tools = BY_NAME["weather_call"], tmp_path / "tools.json"
    tools.write_text(json.dumps(call.options.tools))
    words = ("model=tiny", "plan=tp", "generation=greedy", f"job.tools={tools}", "--json")
    found = answer(hand_started(tmp_path / "call", 2, *words, f"prompt={call.messages[0]['content']}")[0])
    assert given(found) == expected(call)
    assert found["tool_calls"][0]["id"]


def test_the_prompt_may_come_from_standard_input_and_the_answer_is_labelled_text(toy: Path):
    one = BY_NAME["capital"]
    done = run("module", "model=tiny", "plan=tp", "generation=greedy", text=str(one.messages[0]["content"]) + "\n")
    assert (done.returncode, done.stdout) == (0, f"analysis: {one.analysis}\n\nfinal: {one.answer_text}\n"), done.stderr
