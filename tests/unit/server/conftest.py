from __future__ import annotations

import pytest
from live_server import ANALYSIS, CALL, FINAL, serving

BOOK = [
    {
        "match": "weather",
        "harmony": ANALYSIS.format("Call it.") + CALL.format("get_weather", '{"city":"Paris"}<|call|>'),
    },
    {
        "match": "twice",
        "harmony": CALL.format("get_weather", '{"city":"Paris"}<|end|><|start|>assistant')
        + CALL.format("get_weather", '{"city":"Rome"}<|call|>'),
    },
    {
        "match": "preamble",
        "harmony": "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant"
        + CALL.format("get_weather", "{}<|call|>"),
    },
    {"match": "slow", "text": "one two three four five six seven eight nine ten " * 20, "delay_s": 0.02},
    {"match": "count", "text": "one two three four five six seven eight nine ten"},
    {"match": "forever", "text": "on and on " * 1500, "delay_s": 0.001},
    {"match": "emoji", "text": "a😀b 日本 👨‍👩‍👧 ü"},
    {"match": "line ends", "text": "a\x85b\u2028c\u2029d\x1ce\n\r\nf"},
    {"match": "cut in reasoning", "harmony": "<|channel|>analysis<|message|>I think and think", "finish": "length"},
    {
        "match": "malformed",
        "harmony": "<|channel|>nonsense to=nobody<|message|>still text<|end|><|start|>final<|message|><|channel|>",
    },
    {"match": "headless", "harmony": "just words without any header at all"},
    {"match": "wild call", "harmony": "<|channel|>analysis to=python code<|message|>print(1)<|call|>"},
    {"match": "broken call", "harmony": CALL.format("get_wéather", '{"city": Paris<|call|>')},
    {"match": "nothing", "tokens": [200002]},
    {"match": "empty final", "harmony": FINAL.format("")},
    {"match": "json", "text": '{"name": "Ada", "age": 36}'},
    {"harmony": ANALYSIS.format("Think a bit.") + FINAL.format("Hello, wörld! STOP here.")},
]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(BOOK, tmp_path_factory.mktemp("script")) as live:
        yield live
