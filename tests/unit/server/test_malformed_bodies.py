"""Bodies that are almost right: never a 500, a refusal is OpenAI's error object, and the server is there after."""

from __future__ import annotations

import json
import random

import httpx
import pytest
from live_server import FINAL, serving
from malformed_bodies import VALID, send_all

COUNT = 600


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with serving([{"harmony": FINAL.format("Hello.")}], tmp_path_factory.mktemp("malformed")) as live:
        yield live


def test_the_templates_are_right_before_they_are_broken(stage):
    for path, body in VALID:
        answer = httpx.post(f"{stage.url}{path}", json=body, timeout=30)
        assert answer.status_code == 200, (path, answer.text)


def test_no_malformed_body_is_more_than_refused(stage):
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    statuses = send_all(stage.url, seed, COUNT)
    print(statuses)
    assert statuses[200] > COUNT / 50  # some are still right: the others were not refused for one reason alone
    assert statuses[400] > COUNT / 4
    assert httpx.get(f"{stage.url}/ready").status_code == 200
    stage.wait_until(lambda: stage.held_pages() == 0)
    answer = httpx.post(f"{stage.url}{VALID[1][0]}", content=json.dumps(VALID[1][1]), timeout=30)
    assert answer.status_code == 400  # JSON without its type is told so
    assert httpx.post(f"{stage.url}{VALID[0][0]}", json=VALID[0][1], timeout=30).status_code == 200
