"""Every kind of conversation, rendered by openai-harmony and kept: a change of a single token fails here.

Each tests/golden/harmony/NAME.json holds messages, options and the token ids; NAME.txt is the same in plain text. To
take what is rendered now as right, run this file with GPTOSS_REFRESH_GOLDEN=1 and read the difference that git shows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.vocab import load_encoding

FOLDER = Path(__file__).parents[2] / "golden" / "harmony"
CASES = sorted(FOLDER.glob("*.json"))
REFRESH = "GPTOSS_REFRESH_GOLDEN=1 pytest tests/unit/harmony/test_golden.py"


def write(path, case, tokens, text):
    def lines(values):
        return ",\n    ".join(json.dumps(value, ensure_ascii=False) for value in values)

    options = json.dumps(case["options"], ensure_ascii=False)
    body = (
        f'{{\n  "what": {json.dumps(case["what"])},\n  "messages": [\n    {lines(case["messages"])}\n  ],\n'
        f'  "options": {options},\n  "tokens": {json.dumps(tokens)}\n}}\n'
    )
    path.write_text(body, encoding="utf-8")
    path.with_suffix(".txt").write_bytes(text.encode())


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_render_is_the_golden_one(path):
    case = json.loads(path.read_text(encoding="utf-8"))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
    tokens = render(case["messages"], PromptOptions(**options))
    text = load_encoding().decode(tokens)
    if os.environ.get("GPTOSS_REFRESH_GOLDEN") == "1":
        write(path, case, tokens, text)
    refresh = f"{path.name} ({case['what']}) renders otherwise now. If that is meant: {REFRESH}"
    golden = path.with_suffix(".txt")
    assert golden.exists(), refresh
    assert text == golden.read_bytes().decode(), refresh
    assert tokens == json.loads(path.read_text(encoding="utf-8"))["tokens"], refresh


def test_there_are_golden_files():
    assert len(CASES) >= 25
