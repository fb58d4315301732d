from __future__ import annotations

import pytest
from batch_work import engine_of, model_of

from gptoss_dist.batch.answers import begin
from gptoss_dist.batch.records import parse
from gptoss_dist.schema.generation import GenerationConf

CHAT = b'{"prompt": "Hi"}'
RESPONSE = b'{"url": "/v1/responses", "body": {"input": "Hi"}}'


@pytest.mark.parametrize("line", [CHAT, RESPONSE])
@pytest.mark.parametrize("most", [None, 64])
def test_an_answer_is_as_long_as_the_run_says_or_as_the_context_allows(line: bytes, most: int | None):
    engine = engine_of()
    record = parse(line, 0, "a:1", "1")
    (request,) = begin(record, model_of(engine, GenerationConf(max_new_tokens=most))).requests
    assert request.sampling.max_tokens == (most or engine.context - len(request.prompt))


def test_a_record_says_itself_how_long_its_answer_may_be():
    record = parse(b'{"prompt": "Hi", "max_tokens": 7}', 0, "a:1", "1")
    (request,) = begin(record, model_of(engine_of(), GenerationConf())).requests
    assert request.sampling.max_tokens == 7
