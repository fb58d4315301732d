"""What the OpenAPI document promises, tried by schemathesis on a scripted server with right and wrong requests."""

from __future__ import annotations

import json
import os
import random

import hypothesis
import pytest
import schemathesis
from live_server import FINAL, serving
from schemathesis import APIOperation, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.core.failures import FailureGroup

CHECKS = [
    not_a_server_error,
    negative_data_rejection,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
EXAMPLES = int(os.environ.get("GPTOSS_OPENAPI_EXAMPLES", "12"))


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    with serving([{"harmony": FINAL.format("Hello.")}], tmp_path_factory.mktemp("document"), any_model=True) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_every_route_is_as_the_document_says(document, mode: GenerationMode):
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    wrong = {}
    for found in document.get_all_operations():
        operation = found.ok()
        try:
            try_out(operation, mode, seed)
        except hypothesis.errors.Unsatisfiable:  # what takes no input can be given no wrong one
            assert mode is GenerationMode.NEGATIVE
            assert not list(operation.body)
        except FailureGroup as failures:
            wrong[operation.label] = [str(one) for one in failures.exceptions]
    assert not wrong, "\n\n".join(f"{label}: {one}" for label, all_of_it in wrong.items() for one in all_of_it)


def try_out(operation: APIOperation, mode: GenerationMode, seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def as_it_says(case: schemathesis.Case) -> None:
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            assert set(json.loads(answer.content)["error"]) == {"message", "type", "param", "code"}, answer.content

    as_it_says()
