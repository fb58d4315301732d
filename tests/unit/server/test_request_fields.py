from __future__ import annotations

import pytest
from pydantic import ValidationError

from gptoss_dist.server.chat_request import ChatRequest
from gptoss_dist.server.completion_request import CompletionRequest
from gptoss_dist.server.responses_request import ResponseRequest

MANY = 20_000


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {"messages": [{}], "modalities": [1] * MANY}),
        (ChatRequest, {"messages": [{}], "logit_bias": {str(token): "1" for token in range(MANY)}}),
        (CompletionRequest, {"prompt": [1.5] * MANY}),
        (CompletionRequest, {"prompt": [["a"] * MANY]}),
        (CompletionRequest, {"prompt": [["a"]] * MANY}),
        (ResponseRequest, {"input": "x", "include": [1] * MANY}),
        (ResponseRequest, {"input": "x", "metadata": {str(key): 1 for key in range(MANY)}}),
    ],
)
def test_a_body_with_many_wrong_entries_is_refused_at_the_first_ones(model, body):
    """Every complaint takes time of the event loop: a million of them, which a body can hold, took 8 s."""
    with pytest.raises(ValidationError) as wrong:
        model.model_validate(body)
    assert wrong.value.error_count() < 600
