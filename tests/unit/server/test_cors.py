"""What a browser is told about pages of other sites."""

from __future__ import annotations

import httpx
import pytest
from live_server import serving

PAGE = "https://my.site"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


def asked_first(server, origin: str) -> httpx.Response:
    """The browser's own request before one with a key."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    return httpx.options(f"{server.url}/v1/chat/completions", headers=headers)


def shown_to(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with serving([{"text": "yes"}], tmp_path_factory.mktemp("cors"), keys=("k",), cors_origins=(PAGE,)) as server:
        yield server


def test_no_page_is_let_in_unless_told(server):
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert not [name for name in (*answer.headers, *asked_first(server, PAGE).headers) if "access-control" in name]


def test_a_browser_may_ask_for_pages_that_are_let_in(shared):
    answer = asked_first(shared, PAGE)
    assert answer.status_code == 200
    assert shown_to(answer) == PAGE
    for name in ("authorization", "content-type", "x-stainless-os"):
        assert name in answer.headers["access-control-allow-headers"].lower()
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    other = asked_first(shared, "https://other.site")
    assert other.status_code == 400
    assert shown_to(other) is None


@pytest.mark.parametrize("stream", [False, True])
def test_answers_and_errors_are_shown_to_the_page(shared, stream):
    def ask(origin: str, key: str) -> httpx.Response:
        headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
        return httpx.post(f"{shared.url}/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers)

    for key, status in (("k", 200), ("wrong", 401)):
        answer = ask(PAGE, key)
        assert (answer.status_code, shown_to(answer)) == (status, PAGE)
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert shown_to(ask("https://other.site", "k")) is None


def test_all_pages_may_be_let_in(tmp_path):
    with serving([{"text": "yes"}], tmp_path, cors_origins=("*",)) as server:
        assert shown_to(asked_first(server, "https://any.site")) == "*"
        assert shown_to(httpx.get(f"{server.url}/v1/models", headers={"Origin": PAGE})) == "*"
