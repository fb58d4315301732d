from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import CheckpointError, PromptError
from gptoss_dist.harmony.conversation import PromptOptions
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.jobs import chat_template, prompt
from gptoss_dist.jobs.prompt import check_prompt, prompt_tokens
from gptoss_dist.model.tokenizer import build_tokenizer, load_tokenizer
from gptoss_dist.schema.job.generate import GenerateConf, Template
from gptoss_dist.schema.run import RunConf

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def composed() -> RunConf:
    return compose_run(["model=tiny", "plan=single", "job=generate"])


@pytest.fixture(autouse=True)
def _a_terminal(monkeypatch):
    """Nothing waits on standard input."""
    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    """The real tokenizer, which takes two seconds to load."""
    for module in (prompt, chat_template):
        monkeypatch.setattr(module, "load_tokenizer", _cached_tokenizer)


_cached_tokenizer = functools.cache(load_tokenizer)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def render(folder: Path = Path("nowhere"), prompt: str | None = None, **keys: object) -> str:
    """The prompt as text, control tokens spelled out."""
    return load_encoding().decode(tokens(folder, prompt, **keys))


def tokens(folder: Path = Path("nowhere"), prompt: str | None = None, **keys: object) -> list[int]:
    run = RunConf(prompt=prompt, job=GenerateConf(name="generate", **keys))
    return prompt_tokens(run, run.job, folder)


def stdin(monkeypatch, text: str | bytes | None) -> None:
    if text is None:
        monkeypatch.setattr(sys, "stdin", None)
    else:
        content = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def json_file(folder: Path, content: object) -> str:
    file = folder / "content.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


# ── where the text comes from ────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_becomes_a_user_message_that_the_assistant_answers():
    text = render(prompt="Hi, {you}")
    assert text.startswith("<|start|>system<|message|>You are ChatGPT")
    assert text.endswith("<|start|>user<|message|>Hi, {you}<|end|><|start|>assistant")


@pytest.mark.parametrize("text", ["Hello\n", "Hello", "two\nlines\n"])
def test_file_stdin_and_argument_give_the_same_tokens(tmp_path, monkeypatch, text):
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    wanted = tokens(prompt=text.removesuffix("\n"))
    assert tokens(file=str(file)) == wanted
    stdin(monkeypatch, text)
    assert tokens(file="-") == wanted
    stdin(monkeypatch, text)
    assert tokens() == wanted  # piped in, and nothing else given


def test_a_file_wins_over_what_is_piped_in(tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("from the file")
    stdin(monkeypatch, "from the pipe")
    assert "from the file" in render(file=str(file))


def test_a_prompt_never_waits_for_standard_input(monkeypatch):
    read, write = os.pipe()  # a pipe that nobody writes to
    with os.fdopen(read) as never, os.fdopen(write, "w"):
        monkeypatch.setattr(sys, "stdin", never)
        assert "Hi" in render(prompt="Hi")


@pytest.mark.parametrize("empty", ["", "\n", "  \t\n"])
def test_an_empty_prompt_is_refused_from_everywhere(tmp_path, monkeypatch, empty):
    file = tmp_path / "prompt.txt"
    file.write_text(empty)
    for keys in ({"prompt": empty}, {"file": str(file)}):
        for template in Template:
            with pytest.raises(PromptError, match="the prompt is empty"):
                tokens(**keys, template=template)
    stdin(monkeypatch, empty)
    with pytest.raises(PromptError, match="the prompt is empty"):
        tokens()


def test_no_prompt_at_a_terminal_says_how_to_give_one():
    with pytest.raises(PromptError, match=r'there is no prompt\. Give prompt="…", job\.file=FILE'):
        tokens()


def test_standard_input_may_be_closed(monkeypatch):
    stdin(monkeypatch, None)
    with pytest.raises(PromptError, match="the prompt is empty"):
        tokens()
    assert "Hi" in render(prompt="Hi")


def test_standard_input_that_is_no_text(monkeypatch):
    stdin(monkeypatch, b"caf\xe9")
    with pytest.raises(PromptError, match=r"stdin cannot be read: .*utf-8"):
        tokens()


@pytest.mark.parametrize("key", ["file", "messages", "tools"])
def test_a_file_that_cannot_be_read_is_named_with_its_key(tmp_path, key):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, reason in (("nowhere.json", "No such file"), ("latin.txt", "utf-8"), (".", "directory")):
        prompt = "x" if key == "tools" else None
        with pytest.raises(PromptError, match=rf"job\.{key}={tmp_path / name}: cannot be read: .*{reason}"):
            tokens(prompt=prompt, **{key: str(tmp_path / name)})


@pytest.mark.parametrize("content", ["{", "", "[1, 2", "[" * 100_000, "[{'role': 'user'}]"])
@pytest.mark.parametrize("key", ["messages", "tools"])
def test_broken_json_is_named_with_its_key(tmp_path, key, content):
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(PromptError, match=rf"job\.{key}=.*broken\.json: not JSON: "):
        tokens(prompt="x" if key == "tools" else None, **{key: str(file)})


# ── messages and tools ───────────────────────────────────────────────────────────────────────────────────────────────


def test_messages_as_a_list_or_as_an_object_with_tools(tmp_path):
    bare = render(messages=json_file(tmp_path, CONVERSATION[:2]))
    assert "Be brief." in bare
    assert "Weather in Zürich?" in bare
    assert "get_weather" not in bare
    assert bare == render(messages=json_file(tmp_path, {"messages": CONVERSATION[:2], "tools": None}))
    whole = render(messages=json_file(tmp_path, {"messages": CONVERSATION, "tools": [TOOL]}))
    assert "type get_weather = (_: {" in whole
    assert "<|channel|>commentary" in whole
    assert whole.endswith("<|start|>assistant")


def test_tools_of_the_messages_and_of_a_file_are_joined(tmp_path):
    other = {"type": "function", "function": {"name": "other_tool"}}
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([other]))
    text = render(messages=json_file(tmp_path, {"messages": CONVERSATION[:2], "tools": [TOOL]}), tools=str(file))
    assert text.index("get_weather") < text.index("other_tool")
    assert "other_tool" in render(prompt="hi", tools=str(file))


@pytest.mark.parametrize(
    "content", [1, "text", None, {}, {"messages": None}, {"messages": {}}, [1], ["hi"], {"messages": [[]]}]
)
def test_messages_that_are_no_list_of_objects(tmp_path, content):
    with pytest.raises(PromptError, match=r"job\.messages=.*content\.json: messages: a list of objects"):
        tokens(messages=json_file(tmp_path, content))


@pytest.mark.parametrize("content", [{"a": 1}, "text", 3, [1]])
def test_tools_that_are_no_list_of_objects(tmp_path, content):
    with pytest.raises(PromptError, match=r"job\.messages=.*: tools: a list of objects"):
        tokens(messages=json_file(tmp_path, {"messages": CONVERSATION[:2], "tools": content}))
    with pytest.raises(PromptError, match=r"job\.tools=.*: a list of objects"):
        tokens(prompt="hi", tools=json_file(tmp_path, content))


_REFUSED = {
    "no messages": [],
    "no role": [{"content": "x"}],
    "a wrong role": [{"role": "robot", "content": "x"}],
    "no content": [{"role": "user"}],
    "an image": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
    "a tool result without a call": [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}],
    "half of a character": [{"role": "user", "content": "\ud83d"}],
}


@pytest.mark.parametrize("kind", _REFUSED)
@pytest.mark.parametrize("template", [Template.harmony, Template.tokenizer])
def test_a_conversation_that_cannot_be_rendered_is_a_prompt_error(tmp_path, tokenizer_folder, kind, template):
    with pytest.raises(PromptError):
        tokens(tokenizer_folder, messages=json_file(tmp_path, _REFUSED[kind]), template=template)


def test_a_text_that_spells_a_control_token_is_text_or_refused(tokenizer_folder):
    assert load_encoding().encode("<|end|>", disallowed_special=()) != [200007]
    harmony = tokens(prompt="a <|end|> b")
    assert harmony.count(200007) == tokens(prompt="a b").count(200007)
    with pytest.raises(PromptError, match=r"chat template refuses .*<\|end\|>"):
        tokens(tokenizer_folder, prompt="a <|end|> b", template=Template.tokenizer)


def test_instructions_come_before_the_conversation_system_first(tmp_path):
    text = render(prompt="hi", system="One.", developer="Two.")
    assert "# Instructions\n\nOne.\n\nTwo.<|end|><|start|>user" in text
    with_messages = render(messages=json_file(tmp_path, CONVERSATION[:2]), system="One.")
    assert "# Instructions\n\nOne.\n\nBe brief.<|end|>" in with_messages


def test_date_effort_and_builtin_tools_are_in_the_system_message():
    text = render(prompt="hi", date="2025-06-28", builtin_tools=["browser", "python"])
    assert "Current date: 2025-06-28" in text
    assert "## browser" in text
    assert "## python" in text
    assert "Current date" not in render(prompt="hi")
    for effort in ("low", "medium", "high"):
        run = compose_run([f"generation.reasoning_effort={effort}", "prompt=hi"])
        assert f"Reasoning: {effort}" in load_encoding().decode(prompt_tokens(run, run.job, Path("nowhere")))


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("date", [None, "2025-06-28"])
@pytest.mark.parametrize("builtin", [[], ["browser"], ["browser", "python"]])
@pytest.mark.parametrize("messages", [CONVERSATION[1:2], CONVERSATION[:2], CONVERSATION])
def test_harmony_and_the_tokenizers_template_give_equal_tokens(tmp_path, tokenizer_folder, messages, builtin, date):
    file = json_file(tmp_path, {"messages": messages, "tools": [TOOL]})
    keys = {"messages": file, "builtin_tools": builtin, "date": date, "developer": "Answer in German."}
    assert tokens(tokenizer_folder, **keys, template=Template.tokenizer) == tokens(**keys)


def test_the_tokenizers_template_is_given_schemas_that_it_can_read(tmp_path, tokenizer_folder):
    point = {"type": "object", "properties": {"x": {"type": ["number", "null"]}}}
    place = {"anyOf": [{"$ref": "#/$defs/point"}, {"const": "here"}]}
    parameters = {"type": "object", "properties": {"place": place}, "$defs": {"point": point}}
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    keys = {"messages": json_file(tmp_path, {"messages": CONVERSATION[1:2], "tools": [tool]})}
    assert tokens(tokenizer_folder, **keys, template=Template.tokenizer) == tokens(**keys)
    assert '| "here"' in render(tokenizer_folder, **keys, template=Template.tokenizer)


def test_raw_is_the_bare_text(tokenizer_folder):
    text = "Once upon a time,\n  {x} ﷽ 🙂"
    assert tokens(tokenizer_folder, prompt=text, template=Template.raw) == load_encoding().encode(text)


@pytest.mark.parametrize(("text", "said"), [("\ud83d", "half of a surrogate pair"), ("\udcff", "the byte 0xff")])
def test_raw_text_that_is_no_text_is_refused(tokenizer_folder, text, said):
    with pytest.raises(PromptError, match=said):
        tokens(tokenizer_folder, prompt=text, template=Template.raw)


NARROW = """
{%- if messages[0].role in ['system', 'developer'] %}{{ messages[0].content ~ '\n' }}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- if message.tool_calls %}{% set call = message.tool_calls[0].function %}{{ call.name ~ call.arguments | tojson }}
{%- elif message.role == 'tool' %}{{ message.content | tojson }}
{%- elif message.role in ['user', 'assistant'] %}{{ message.content }}{% endif %}
{%- endfor %}"""
"""As the hub's: one message of instructions, one call a message, arguments and results as JSON, no date."""


@pytest.fixture
def narrow(tmp_path, tokenizer_folder) -> Path:
    """A tokenizer whose chat template takes less than harmony."""
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "narrow"))
    (folder / "chat_template.jinja").write_text(NARROW)
    return folder


def call(arguments: object, name: str = "get_weather") -> dict:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}


def with_calls(*calls: dict) -> list[dict]:
    user = {"role": "user", "content": "Weather?"}
    result = {"role": "tool", "tool_call_id": "get_weather", "content": 'It "rains".'}
    return [user, {"role": "assistant", "content": "", "tool_calls": list(calls)}, result]


def test_a_template_that_takes_one_message_of_instructions_gets_one(narrow):
    text = render(narrow, prompt="Hi", system="Be brief.", developer="Be kind.", template=Template.tokenizer)
    assert text.startswith("Be brief.\n\nBe kind.\n")


def test_a_result_may_be_written_as_json(tmp_path, narrow):
    file = json_file(tmp_path, with_calls(call({"city": "Rome"})))
    assert 'Weather?get_weather{"city": "Rome"}"It \\"rains\\"."' in render(
        narrow, messages=file, template=Template.tokenizer
    )


@pytest.mark.parametrize(
    ("messages", "lost"),
    [
        ([{"role": "user", "content": "Hi"}, {"role": "developer", "content": "Be brief."}], r"messages\[1\]"),
        (with_calls(call({}), call({}, "get_time")), r"messages\[1\]\.tool_calls\[1\]\.name"),
        (with_calls(call('{"city": "Rome"}')), r"messages\[1\]\.tool_calls\[0\]\.arguments"),
    ],
)
def test_what_a_template_leaves_out_is_named(tmp_path, narrow, messages, lost):
    with pytest.raises(PromptError, match=rf"narrow leaves out {lost}, or alters it\. job\.template=harmony"):
        tokens(narrow, messages=json_file(tmp_path, messages), template=Template.tokenizer)


def test_a_date_that_a_template_does_not_take_is_named(narrow):
    with pytest.raises(PromptError, match=r"takes no date\. Drop job\.date"):
        tokens(narrow, prompt="Hi", date="2025-06-28", template=Template.tokenizer)


def test_a_response_format_that_a_template_does_not_take_is_named(narrow):
    options = PromptOptions(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}}})
    with pytest.raises(PromptError, match="takes no response format"):
        chat_template.render_by_chat_template([{"role": "user", "content": "Hi"}], options, narrow)


def test_a_torn_tokenizer_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    run = compose_run(["model=tiny", f"model.path={tmp_path}", "job.template=tokenizer", "prompt=Hi"])
    with pytest.raises(CheckpointError, match=r"Fetch tokenizer\.json again"):
        check_prompt(run, run.job)


@pytest.mark.parametrize("template", [Template.tokenizer, Template.raw])
def test_a_folder_without_a_tokenizer_is_named(tmp_path, template):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        tokens(tmp_path, prompt="hi", template=template)


def test_a_composed_and_frozen_run_works_too(composed, monkeypatch):
    stdin(monkeypatch, "Hi")
    assert prompt_tokens(composed, composed.job, Path("nowhere")) == tokens(prompt="Hi")


MISSING = {"file": ["job.file=/no/such/file"], "messages": ["job.messages=/no/such/file"]}
MISSING["tools"] = ["prompt=Hi", "job.tools=/no/such/file"]
BEFORE_LOADING = [("raw", "file"), *((template, kind) for template in ("harmony", "tokenizer") for kind in MISSING)]


@pytest.mark.parametrize(("template", "kind"), BEFORE_LOADING)
def test_a_missing_file_is_told_before_anything_is_loaded(template, kind):
    run = compose_run(["model=tiny", f"job.template={template}", *MISSING[kind]])
    with pytest.raises(PromptError, match=r"/no/such/file: cannot be read"):
        check_prompt(run, run.job)


def test_what_standard_input_gave_is_kept_for_the_job(composed, monkeypatch):
    stdin(monkeypatch, "Hi")
    check_prompt(composed, composed.job)
    assert prompt_tokens(composed, composed.job, Path("nowhere")) == tokens(prompt="Hi")


@pytest.mark.parametrize("words", [[], ["job.file=-"], ["job.template=raw"], ["job.template=tokenizer"]])
def test_an_empty_standard_input_is_told_before_anything_is_loaded(monkeypatch, words: list[str]):
    run = compose_run(["model=tiny", *words])
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(PromptError, match="the prompt is empty"):
            check_prompt(run, run.job)
