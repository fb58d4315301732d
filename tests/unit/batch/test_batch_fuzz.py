"""Bodies broken at random, and a model that says anything: every record has its line, and nothing ends the batch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from batch_work import model_of, run_of
from malformed_bodies import malformed

from gptoss_dist.batch.function_files import load_functions
from gptoss_dist.batch.work import Batch
from gptoss_dist.engine.scripted import Script, ScriptedEngine
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.schema.engine import EngineConf

TOOLS = '''
def get_weather(a: int) -> str:
    """Weather.

    Args:
        a: How often.
    """
    return "x" * a
'''
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"a":1}<|call|>'
_CONTROL = ("channel", "message", "end", "start", "call", "return")
_PLAIN = (
    "assistant",
    "analysis",
    "final",
    "commentary",
    " to=functions.get_weather",
    '{"a":1}',
    "{",
    "é",
    "functions.",
)
WORDS = (*(f"<|{name}|>" for name in _CONTROL), " <|constrain|>json", *_PLAIN)


def babbling(chance: random.Random) -> ScriptedEngine:
    encoding = load_encoding()

    def choose(prompt: tuple[int, ...]) -> Script:
        said = CALL if chance.random() < 0.4 else "".join(chance.choices(WORDS, k=chance.randrange(1, 14)))
        odd = [chance.randrange(200_000) for _ in range(chance.choice((0, 0, 5)))]
        return Script((*encoding.encode(said, allowed_special="all"), *odd))

    return ScriptedEngine(choose, EngineConf("test", max_running=16))


@pytest.mark.parametrize("with_functions", [False, True])
def test_every_record_has_its_line(tmp_path: Path, with_functions: bool):
    seed, count = 5 + with_functions, 300
    with (tmp_path / "in.jsonl").open("wb") as lines:
        for number, one in enumerate(malformed(seed, count)):
            url = b"/v1/responses" if "responses" in one.path else b"/v1/chat/completions"
            body = one.body.replace(b"\n", b" ").replace(b"\r", b" ")
            lines.write(b'{"custom_id": "c%d", "url": "%s", "body": %s}\n' % (number, url, body))
    (tmp_path / "tools.py").write_text(TOOLS)
    functions = load_functions(str(tmp_path / "tools.py")) if with_functions else None
    engine = babbling(random.Random(seed))
    run = run_of(tmp_path / "out.jsonl", functions="tools.py" if with_functions else None, rounds=3)
    batch = Batch(run, engine, model_of(engine), "single", 24, lambda: False, functions)
    content = batch.run([tmp_path / "in.jsonl"], "worker", True)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines) == count
    assert all((line["error"] is None) == (line["response"]["status_code"] == 200) for line in lines)
    assert all(line["response"]["status_code"] < 500 for line in lines)
    assert content["complete"]
    assert 0 < content["answered"] < count
