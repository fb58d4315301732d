from __future__ import annotations

import base64
import json
import random
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
import tiktoken

from gptoss_dist.errors import CheckpointError, PromptError
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.vocab import find_vocabulary, load_encoding
from gptoss_dist.model import tokenizer as under_test

GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "harmony").glob("*.json"))
KWARGS = {"system_identity": "model_identity"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    under_test.build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return under_test.load_tokenizer(folder)


@pytest.fixture(scope="module")
def reference():
    """tiktoken itself, over the vocabulary file."""
    load_encoding()
    lines = find_vocabulary().path.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(
        "o200k", pat_str=under_test.O200K_PATTERN, mergeable_ranks=ranks, special_tokens={"<|end|>": 200007}
    )


def template_tokens(tokenizer, messages, options, add_generation_prompt=True):
    values = {"current_date": None} | {KWARGS.get(key, key): value for key, value in options.items()}
    tools = PromptOptions(tools=tuple(values.pop("tools", None) or ())).readable_tools() or None
    return tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, return_dict=False, **values
    )


def test_the_folder_holds_what_a_checkpoint_holds(folder):
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == names


def test_special_tokens_have_the_ids_of_gpt_oss(tokenizer):
    assert len(tokenizer) == under_test.VOCABULARY_SIZE == 201088
    expected = {
        "<|startoftext|>": 199998,
        "<|endoftext|>": 199999,
        "<|reserved_200000|>": 200000,
        "<|return|>": 200002,
        "<|constrain|>": 200003,
        "<|channel|>": 200005,
        "<|start|>": 200006,
        "<|end|>": 200007,
        "<|message|>": 200008,
        "<|reserved_200011|>": 200011,
        "<|call|>": 200012,
        "<|reserved_200017|>": 200017,
        "<|endofprompt|>": 200018,
        "<|reserved_201087|>": 201087,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (199998, 200002, 199999)
    assert tokenizer.encode("<|start|>user<|message|>") == [200006, 1428, 200008]


def test_special_tokens_are_those_of_openai_harmony(tokenizer):
    encoding = load_encoding()
    for token in range(199998, 201088):
        if token != 200018:  # <|endofprompt|> has no name of its own in openai-harmony
            assert tokenizer.decode([token]) == encoding.decode([token])


def test_special_tokens_can_be_left_out_of_a_text(tokenizer):
    tokens = [200005, 17196, 200008, *tokenizer.encode("Hello 😀"), 200002]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "finalHello 😀"


def sources():
    """This package's own text, and text of every shape."""
    yield from (path.read_text(encoding="utf-8") for path in sorted(Path(under_test.__file__).parents[1].rglob("*.py")))
    for unit in (
        "a",
        " ",
        "\n",
        "  \n",
        "\t",
        "=",
        "0",
        "ab",
        "aA",
        "!?",
        "日本",
        "é",
        "e\u0301",
        "😀",
        "👩‍👩‍👧",
        "ا",
        "ก",
        "/",
    ):
        yield from (unit * count for count in (*range(1, 20), 63, 64, 65, 129))
    yield "The quick brown fox can't, won't and SHAN'T; it'll've 12345 3.14159 1_000_000 … –—"
    yield "Ünïcödé ½ ² Ⅷ ﷽ \u200b\ufeff\u2028 Здравствуй, мир! 안녕하세요 שלום ไทยนี้ 中文，标点。"
    yield "\r\n\r\n  \r \n\t mixed \u00a0\u3000 spaces   \n"


def random_texts(count=3000):
    rng = random.Random(7)
    alphabets = (
        "abc '",
        "aA's",
        " \n\t\r",
        "01 .,",
        "日本のテキスト ",
        "éeñ\u0301 ",
        "😀👍🏽\u200d❤️",
        "()[]{};=\n ",
        "зыка ",
        None,
    )
    planes = ((32, 126), (128, 0x2FF), (0x370, 0x1FFF), (0x3000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    for _ in range(count):
        alphabet = rng.choice(alphabets)
        size = rng.randint(1, 80)
        yield "".join(rng.choice(alphabet) if alphabet else chr(rng.randint(*rng.choice(planes))) for _ in range(size))


def test_encoding_is_tiktokens_and_decoding_gives_the_text_back(tokenizer, reference):
    for text in (*sources(), *random_texts()):
        plain = text.replace("<|", "< |")  # control tokens are another matter
        tokens = tokenizer.encode(plain)
        assert tokens == reference.encode_ordinary(plain), plain[:200]
        assert tokenizer.decode(tokens) == plain


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_chat_template_renders_what_openai_harmony_renders(tokenizer, path):
    case = json.loads(path.read_text(encoding="utf-8"))
    if path.stem == "control-tokens-in-text":
        with pytest.raises(jinja2.exceptions.TemplateError, match=r"control token <\|.*openai-harmony"):
            template_tokens(tokenizer, case["messages"], case["options"])
        return
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
    expected = render(case["messages"], PromptOptions(**options))
    tokens = template_tokens(tokenizer, case["messages"], case["options"])
    assert tokenizer.decode(tokens) == tokenizer.decode(expected)
    assert tokens == expected == case["tokens"]
    without = template_tokens(tokenizer, case["messages"], case["options"], add_generation_prompt=False)
    assert without == expected[:-2]


def random_schema(rng, depth=0):
    kinds = ["string", "number", "integer", "boolean", "array", "object", "oneOf", "many", "any", "enum"]
    kind = rng.choice(kinds if depth < 3 else kinds[:4])
    schema = {"type": kind}
    if kind == "array" and rng.random() < 0.8:
        schema["items"] = random_schema(rng, depth + 1)
    elif kind == "object":
        names = rng.sample(["a", "b_c", "items", "get", "Ünï", "type"], rng.randint(0, 4))
        schema["properties"] = {name: random_schema(rng, depth + 1) for name in names}
        schema["required"] = rng.sample(names, rng.randint(0, len(names)))
    elif kind == "oneOf":
        schema = {"oneOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(0, 3))]}
    elif kind == "many":
        schema["type"] = rng.sample(["integer", "string", "null", "array"], rng.randint(0, 3))
    elif kind == "enum":
        schema = {
            "type": rng.choice(["string", "number"]),
            "enum": rng.sample(["x", "y z", 1, None], rng.randint(0, 4)),
        }
    for key, values in (
        ("description", ["Said.", "Said.", "two\nlines", ""]),
        ("title", ["T"]),
        ("default", ["d", 'q"', 1, 2.5, 1e-5, 3e-9, 4.5e21, None, True, [1, "é"], {"k": {}}]),
        ("nullable", [True, False, "yes"]),
        ("examples", [["e", 1], []]),
        ("additionalProperties", [True, False]),
    ):
        if rng.random() < 0.25:
            schema[key] = rng.choice(values)
    return schema


def test_the_chat_template_renders_any_schema_as_openai_harmony_does(tokenizer):
    rng = random.Random(3)
    for _ in range(300):
        function = {"name": "f", "description": "D", "parameters": random_schema(rng)}
        options = {"tools": [{"type": "function", "function": function}]}
        messages = [{"role": "user", "content": "?"}]
        expected = render(messages, PromptOptions(tools=tuple(options["tools"])))
        assert tokenizer.decode(template_tokens(tokenizer, messages, options)) == tokenizer.decode(expected), function


def random_conversation(rng):
    messages, ids = [{"role": "user", "content": "?"}], []
    for _ in range(rng.randint(0, 8)):
        role = rng.choice(["user", "assistant", "assistant", "tool", "system", "developer"])
        message = {"role": role, "content": rng.choice(["", "text", "é\n", [{"type": "text", "text": "part"}]])}
        if role == "tool":
            message |= {"tool_call_id": rng.choice(ids)} if ids and rng.random() < 0.7 else {"name": "f"}
        elif role == "assistant":
            message["content"] = rng.choice([None, "", "said", "said"])
            message[rng.choice(["reasoning", "reasoning_content", "thinking"])] = rng.choice([None, "", "thought"])
            names = rng.sample(["f", "f", "python", "browser.search"], rng.choice([0, 0, 1, 2]))
            calls = [{"id": f"id{rng.randint(0, 5)}", "function": {"name": name, "arguments": "{}"}} for name in names]
            ids += [call["id"] for call in calls]
            message |= {"tool_calls": calls} if calls else {}
        messages.append(message)
    return messages


def test_the_chat_template_renders_or_refuses_any_conversation_as_the_renderer_does(tokenizer):
    rng = random.Random(5)
    rendered = 0
    for _ in range(400):
        messages = random_conversation(rng)
        options = {"builtin_tools": rng.choice([[], ["python"], ["python", "browser"]])}
        if rng.random() < 0.5:
            options["tools"] = [{"type": "function", "function": {"name": "f"}}]
        try:
            expected = render(messages, PromptOptions(**{key: tuple(value) for key, value in options.items()}))
        except PromptError:
            with pytest.raises(jinja2.exceptions.TemplateError):
                template_tokens(tokenizer, messages, options)
            continue
        rendered += 1
        assert tokenizer.decode(template_tokens(tokenizer, messages, options)) == tokenizer.decode(expected), messages
    assert 100 < rendered < 400


def test_the_chat_template_takes_todays_date_when_none_is_given(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    before = datetime.now().strftime("%Y-%m-%d")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    after = datetime.now().strftime("%Y-%m-%d")
    expected = [tokenizer.decode(render(messages, PromptOptions(current_date=date))) for date in (before, after)]
    assert text in expected


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        ([{"role": "critic", "content": "x"}], {}, "critic"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "text only"),
        ([{"role": "user", "content": None}], {}, "no content"),
        ([{"role": "assistant", "content": None}], {}, "neither content nor tool_calls"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], {}, "no earlier assistant message calls"),
        ([{"role": "user", "content": "x"}], {"reasoning_effort": "huge"}, "huge"),
        ([{"role": "user", "content": "x"}], {"builtin_tools": ["shell"]}, "shell"),
    ],
)
def test_the_chat_template_refuses_what_the_renderer_refuses(tokenizer, messages, options, says):
    with pytest.raises(jinja2.exceptions.TemplateError, match=says):
        template_tokens(tokenizer, messages, options)


def test_a_second_build_gives_the_same_files(folder, tmp_path):
    under_test.build_tokenizer(tmp_path / "new" / "folder")
    for path in folder.iterdir():
        assert (tmp_path / "new" / "folder" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_without_tokenizer_names_the_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        under_test.load_tokenizer(tmp_path)


def test_a_torn_tokenizer_names_its_folder(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torn = tmp_path / "tokenizer.json"
    torn.write_bytes(torn.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"Fetch tokenizer\.json again"):
        under_test.load_tokenizer(tmp_path)
