"""The toy model. The first run on a machine trains it: about a minute on two cores."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from filelock import FileLock
from openai_harmony import Role
from safetensors import safe_open
from transformers import AutoTokenizer, GptOssForCausalLM

from gptoss_dist.errors import CheckpointError
from gptoss_dist.harmony.conversation import PromptOptions, render, stop_tokens
from gptoss_dist.harmony.vocab import find_vocabulary, load_encoding
from gptoss_dist.hub_config import is_packed, read_shape
from gptoss_dist.jobs.tiny import run_tiny
from gptoss_dist.kernels.mxfp4 import dequantize
from gptoss_dist.model import tiny
from gptoss_dist.model.tiny_conversations import CONVERSATIONS, WEATHER_TOOL, TinyConversation
from gptoss_dist.model.tiny_lessons import EFFORTS, IGNORED, CompactVocabulary, Lessons
from gptoss_dist.model.tiny_training import entries, new_model, train_once
from gptoss_dist.shapes import SIZES

BY_NAME = {conversation.name: conversation for conversation in CONVERSATIONS}


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny.tiny_checkpoint()


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, folder: Path) -> GptOssForCausalLM:
    return GptOssForCausalLM.from_pretrained(folder, dtype=request.param).eval()


def generate(model: GptOssForCausalLM, prompt: list[int]) -> list[int]:
    options = {"do_sample": False, "eos_token_id": list(stop_tokens()), "pad_token_id": 199999}
    row = model.generate(torch.tensor([prompt]), max_new_tokens=100, **options)[0]
    return [int(token) for token in row[len(prompt) :]]


@pytest.mark.parametrize("name", ["mxfp4", "weather_call", "weather_result", "second_turn"])
def test_transformers_generates_the_answer_greedily(model: GptOssForCausalLM, name: str) -> None:
    prompt, answer = BY_NAME[name].example()
    assert generate(model, prompt) == answer


@torch.no_grad()
def right_tokens(model: GptOssForCausalLM, prompt: list[int], answer: list[int]) -> bool:
    """Whether every token of the answer is the most likely one after those before it: greedy decoding gives it."""
    logits = model(torch.tensor([prompt + answer[:-1]]), logits_to_keep=len(answer)).logits[0]
    return bool(torch.equal(logits.argmax(-1), torch.tensor(answer)))


@pytest.mark.parametrize("date", [None, "2026-01-01", "2029-07-31"])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=BY_NAME)
def test_every_answer_is_the_greedy_one_at_every_effort(
    model: GptOssForCausalLM, conversation: TinyConversation, date: str | None
) -> None:
    assert all(right_tokens(model, *conversation.example(effort, date)) for effort in EFFORTS)


def test_every_answer_is_likely_when_sampled(model: GptOssForCausalLM) -> None:
    for conversation in CONVERSATIONS:
        prompt, answer = conversation.example()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer[:-1]]), logits_to_keep=len(answer)).logits[0].float()
        loss = F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        assert float(torch.exp(-loss)) > 0.5, conversation.name


def test_answers_read_back_as_they_were_meant() -> None:
    for conversation in CONVERSATIONS:
        _, answer = conversation.example()
        said = load_encoding().parse_messages_from_completion_tokens(answer, Role.ASSISTANT)
        texts = {message.channel: message.content[0].text for message in said}
        assert texts["analysis"] == conversation.analysis
        if conversation.tool_calls:
            assert conversation.tool_calls == (("get_weather", texts["commentary"]),)
            assert json.loads(texts["commentary"]) == {"city": "San Francisco"}
            assert said[-1].recipient == "functions.get_weather"
            assert conversation.answer_text == ""
        else:
            assert texts["final"] == conversation.answer_text


def test_prompts_are_what_a_user_of_the_program_sends() -> None:
    weather = [{"role": "user", "content": "What is the weather like in SF?"}]
    options = PromptOptions(tools=(WEATHER_TOOL,), reasoning_effort="high", current_date="2026-01-01")
    assert BY_NAME["weather_call"].example("high", "2026-01-01")[0] == render(weather, options)


def test_it_is_a_packed_checkpoint_of_the_tiny_shape_that_says_it_is_a_toy(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert read_shape(config) == SIZES["tiny"]
    assert is_packed(config)
    assert "toy" in config["_name_or_path"]
    assert "not gpt-oss" in (folder / "README.md").read_text()
    assert {stat.S_IMODE(path.stat().st_mode) & 0o044 for path in folder.iterdir()} == {0o044}
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == {spec.name for spec in SIZES["tiny"].tensors()}
    assert len(set(index.values())) == 2


def test_tokens_that_were_never_trained_differ_from_each_other(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / index["model.embed_tokens.weight"], "pt") as file:
        rows = file.get_slice("model.embed_tokens.weight")[50_000:52_000]
    assert rows.unique(dim=0).shape[0] == 2_000


def test_its_tokenizer_reads_its_conversations(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, answer = BY_NAME["haiku"].example()
    assert BY_NAME["haiku"].answer_text in tokenizer.decode(answer)
    assert tokenizer.encode(load_encoding().decode(prompt), add_special_tokens=False) == prompt


def test_the_job_says_what_there_is(folder: Path) -> None:
    answer = run_tiny()
    assert (answer["folder"], answer["trained"]) == (str(folder), False)
    assert answer["conversations"] == list(BY_NAME)
    assert answer["wrong_tokens"] == 0
    assert answer["margin"] > 0


def test_the_compact_loss_is_the_loss_over_the_whole_vocabulary() -> None:
    vocabulary = CompactVocabulary(201_088)
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(5, 64, generator=generator)
    head_RH = torch.randn(vocabulary.size, 64, generator=generator)
    tokens = torch.tensor(vocabulary.tokens[10:15])
    whole = F.cross_entropy(hidden_TH @ head_RH[vocabulary.row_V].T, tokens)
    compact = F.cross_entropy(hidden_TH @ head_RH.T + vocabulary.log_counts(), vocabulary.row_V[tokens])
    torch.testing.assert_close(compact, whole)


def test_lessons_are_the_same_for_the_same_seed_and_label_completions_only() -> None:
    vocabulary = CompactVocabulary(201_088)
    for step in (0, 1):
        batch = Lessons(vocabulary, 2, seed=5)[step]
        again, other = Lessons(vocabulary, 2, seed=5)[step], Lessons(vocabulary, 2, seed=6)[step]
        assert torch.equal(batch["input_ids"], again["input_ids"])
        assert not torch.equal(batch["input_ids"], other["input_ids"])
        labelled = batch["labels"] != IGNORED
        assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
        ends = {int(vocabulary.row_V[token]) for token in stop_tokens()}
        for row in range(len(labelled)):
            places = labelled[row].nonzero().flatten()
            assert torch.equal(places, torch.arange(int(places[0]), int(places[-1]) + 1))
            assert int(batch["labels"][row, places[-1]]) in ends
            assert int(batch["attention_mask"][row].sum()) == int(places[-1]) + 1


def test_training_moves_all_but_the_packed_experts_and_says_when_it_did_not_learn() -> None:
    shape, vocabulary = SIZES["tiny"], CompactVocabulary(201_088)
    torch.manual_seed(0)
    before = new_model(shape, vocabulary.size)[0].state_dict()
    model, packed, result = train_once(shape, vocabulary, seed=0, steps=6)
    assert not result.learned
    assert result.wrong_tokens > 0
    for name, tensor in model.state_dict().items():
        frozen = "gate_up_proj" in name or name.endswith("experts.down_proj")
        assert torch.equal(tensor, before[name].bfloat16()) == frozen, name
    name = "model.layers.3.mlp.experts.down_proj"
    unpacked = dequantize(packed[f"{name}_blocks"], packed[f"{name}_scales"])
    assert torch.equal(unpacked.transpose(1, 2), model.get_parameter(name))
    written = {entry.name: entry for entry in entries(shape, vocabulary, model, packed)}
    token = vocabulary.tokens[100]
    assert torch.equal(written["lm_head.weight"].make()[token], model.lm_head.weight[100])
    assert torch.equal(written["model.embed_tokens.weight"].make()[token], model.model.embed_tokens.weight[100])


def test_the_training_process_is_no_rank() -> None:
    launched = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "SLURM_PROCID": "3", "TORCHELASTIC_RUN_ID": "1"}
    kept = tiny.training_environment({**launched, "OMP_NUM_THREADS": "1", "HOME": "/home/me", "PYTHONPATH": "/a"})
    assert not set(launched) & set(kept)
    assert "OMP_NUM_THREADS" not in kept
    assert kept["HOME"] == "/home/me"
    assert kept["PYTHONPATH"].endswith(f"{os.pathsep}/a")


def test_the_folder_changes_with_the_code_and_not_with_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "code.py"
    monkeypatch.setattr(tiny, "_PACKAGE", tmp_path)
    monkeypatch.setattr(tiny, "_SOURCES", ("code.py",))
    texts = [
        "def f(x):\n    return x + 1\n",
        '"""About."""\n# Why.\ndef f(x):\n    """Add."""\n    return (x  +  1)\n',
        "def f(x):\n    return x + 2\n",
    ]
    folders = []
    for text in texts:
        source.write_text(text)
        folders.append(tiny.tiny_folder())
    assert folders[0] == folders[1] != folders[2]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = find_vocabulary()
    assert found is not None
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(found.path.parent))
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path))
    return tmp_path


def stand_in_for_python(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(tiny.sys, "executable", str(program))


def test_a_failed_training_is_an_error_and_leaves_no_model(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_python(empty_cache, "exit 3", monkeypatch)
    with pytest.raises(CheckpointError, match="exit status 3"):
        tiny.tiny_checkpoint()
    assert not tiny.tiny_folder().exists()


def test_force_trains_anew_and_puts_the_new_one_in_place(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_python(empty_cache, 'mkdir "$3" && date +%N > "$3/made"', monkeypatch)
    first = (tiny.tiny_checkpoint() / "made").read_text()
    assert (tiny.tiny_checkpoint() / "made").read_text() == first
    assert (tiny.tiny_checkpoint(force=True) / "made").read_text() != first
    assert [path.name for path in empty_cache.iterdir() if path.is_dir()] == [tiny.tiny_folder().name]


def test_waiting_for_another_process_ends_with_a_clear_error(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "_LONGEST_WAIT_S", 0.1)
    with FileLock(f"{tiny.tiny_folder()}.lock"), pytest.raises(CheckpointError, match="Another process"):
        tiny.tiny_checkpoint()


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="GPTOSS_CACHE"):
        tiny.tiny_checkpoint()
