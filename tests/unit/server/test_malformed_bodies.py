"""Bodies that are almost right: never a 500, a refusal is OpenAI's error object, and the server is there after."""

from __future__ import annotations

import json
import random

import httpx
import pytest
from live_server import FINAL, serving
from malformed_bodies import VALID, Malformed, malformed

COUNT = 600
ERROR = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with serving([{"harmony": FINAL.format("Hello.")}], tmp_path_factory.mktemp("malformed")) as live:
        yield live


def complaint(one: Malformed, answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status_code == 200:
        return "an error of the server within a stream" if '"type":"server_error"' in answer.text else None
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    error = answer.json().get("error", {})
    if set(error) != ERROR or not error["message"] or not isinstance(error["message"], str):
        return "no error object"
    if error["param"] is not None and not isinstance(error["param"], str):
        return "param is no text"
    return "a very long message" if len(answer.content) > 20_000 else None


def test_the_templates_are_right_before_they_are_broken(stage):
    for path, body in VALID:
        answer = httpx.post(f"{stage.url}{path}", json=body, timeout=30)
        assert answer.status_code == 200, (path, answer.text)


def test_no_malformed_body_is_more_than_refused(stage):
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=stage.url, timeout=30) as client:
        for number, one in enumerate(malformed(seed, COUNT)):
            headers = list(one.headers.items())
            answer = client.post(one.path, content=one.body, headers=headers)
            wrong = complaint(one, answer)
            said = f"seed {seed}, number {number}, {one.how}: {one.path} {one.headers} {one.body[:2000]!r}"
            assert wrong is None, f"{wrong}: {answer.text[:500]} to {said}"
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    print(statuses)
    assert statuses[200] > COUNT / 50  # some are still right: the others were not refused for one reason alone
    assert statuses[400] > COUNT / 4
    assert httpx.get(f"{stage.url}/ready").status_code == 200
    stage.wait_until(lambda: stage.held_pages() == 0)
    answer = httpx.post(f"{stage.url}{VALID[1][0]}", content=json.dumps(VALID[1][1]), timeout=30)
    assert answer.status_code == 400  # JSON without its type is told so
    assert httpx.post(f"{stage.url}{VALID[0][0]}", json=VALID[0][1], timeout=30).status_code == 200
