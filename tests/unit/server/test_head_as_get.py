from __future__ import annotations

import httpx
import pytest
from live_server import MODEL


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/docs"])
def test_the_head_of_what_get_answers_comes_alone(server, path: str):
    with httpx.Client(base_url=server.url) as client:
        head, whole = client.head(path), client.get(path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # which has grown by the request before
        assert head.headers["content-length"] == whole.headers["content-length"] != "0"


def test_what_is_not_there_has_no_head_either(server):
    assert httpx.head(f"{server.url}/nothing").status_code == 404
    assert httpx.head(f"{server.url}/v1/chat/completions").status_code == 405
