from __future__ import annotations

import json

import httpx
from live_server import MODEL, serving


def test_the_model_is_there_already(server):
    answer = httpx.post(f"{server.url}/load_model", json={"model": MODEL})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    assert [json.loads(line.removeprefix("data: ")) for line in lines] == [
        {"status": "ready", "model": MODEL, "cached": True}
    ]


def test_another_model_and_a_wrong_body_are_refused(server):
    answer = httpx.post(f"{server.url}/load_model", json={"model": "gpt-4o"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.post(f"{server.url}/load_model", json={}).status_code == 400


def test_while_it_is_loaded_the_client_is_told_to_come_back(tmp_path):
    with serving([{"text": "yes"}], tmp_path, loaded=False) as loading:
        answer = httpx.post(f"{loading.url}/load_model", json={"model": MODEL})
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
