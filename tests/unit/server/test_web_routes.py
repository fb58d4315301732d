from __future__ import annotations

import importlib.metadata
import re

import httpx
import pytest
from live_server import MODEL, serving

from gptoss_dist.server.keys import OPEN_PATHS
from gptoss_dist.server.web_files import load_files

TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
TYPES["js"] = "text/javascript; charset=utf-8"
LINKS = re.compile(r"""(?:href|src)="([^"#]+)"|from "\./([^"]+)"|url\(([^)]+)\)""")


def ask(server, text: str = "hi") -> None:
    body = {"messages": [{"role": "user", "content": text}]}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).status_code == 200


def test_the_page_and_all_it_asks_for_are_served(server):
    with httpx.Client(base_url=server.url) as client:
        wanted, seen = ["/"], set()
        while wanted:
            path = wanted.pop()
            seen.add(path)
            answer = client.get(path)
            assert answer.status_code == 200, path
            if path in ("/metrics", "/stats", "/docs"):
                continue
            kind = "html" if path == "/" else path.rpartition(".")[2]
            assert answer.headers["content-type"] == TYPES[kind]
            for links in LINKS.findall(answer.text):
                link = "".join(links)
                found = "/" + link if path == "/" else f"/web/{link}"
                wanted += [found] if found not in seen else []
    assert seen >= {f"/web/{name}" for name in load_files() if name != "page.html"}


def test_no_file_names_another_host_or_holds_code_that_the_policy_forbids():
    for name, file in load_files().items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")  # a name, which nobody fetches
        assert "//" not in re.sub(r"(^|\s)//.*", "", text), name
        if name.endswith(".html"):
            assert not re.search(r"\s(on\w+|style)=|<style|<script(?! type=\"module\" src=)", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text), name


@pytest.mark.parametrize("path", ["/", "/web/page.js", "/web/page.css"])
def test_headers_forbid_what_the_page_does_not_need(server, path: str):
    headers = httpx.get(f"{server.url}{path}").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/web/chat.js"])
def test_what_the_browser_has_is_not_sent_again(server, path: str):
    url = f"{server.url}{path}"
    first = httpx.get(url)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = httpx.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).content == first.content
    head = httpx.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize(
    "path", ["/web/", "/web/nothing.js", "/web/..%2fkeys.py", "/web/../keys.py", "/web/web_files.py"]
)
def test_other_files_are_not_there(server, path: str):
    answer = httpx.get(f"{server.url}{path}")
    assert answer.status_code == 404
    assert "error" in answer.json()


def test_page_and_stats_are_open_and_the_models_are_not(tmp_path):
    with serving([{"text": "yes"}], tmp_path, keys=("secret",)) as guarded:
        for path in OPEN_PATHS:
            assert httpx.get(f"{guarded.url}{path}").status_code == 200, path
        assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
        assert "secret" not in httpx.get(f"{guarded.url}/stats").text


def test_stats_agree_with_the_metrics(tmp_path):
    with serving([{"match": "slow", "text": "word " * 200, "delay_s": 0.05}, {"text": "one two"}], tmp_path) as server:
        server.service.about = {"plan": "tp=2", "kernels": "reference"}
        before = httpx.get(f"{server.url}/stats").json()
        assert (before["status"], before["why"], before["model"]["name"]) == ("ready", None, MODEL)
        assert before["about"] == {
            "plan": "tp=2",
            "kernels": "reference",
            "version": importlib.metadata.version("gptoss-dist"),
        }
        assert before["latency_s"]["first_token"]["p50"] is None
        ask(server)
        slow = {"messages": [{"role": "user", "content": "slow"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=slow) as answer:
            pieces = answer.iter_text()  # held, for it closes the connection when it goes
            next(pieces)
            server.wait_until(lambda: httpx.get(f"{server.url}/stats").json()["tokens_per_s"]["generated"])
            stats, metrics = httpx.get(f"{server.url}/stats").json(), server.metrics()
        assert stats["requests"] == {"queued": 0, "open": 1, "running": 1, "waiting": 0, "preemptions": 0}
        for pool in ("full", "sliding"):
            assert stats["pages"][pool]["total"] == metrics[f'gptoss_kv_pages_in_all{{pool="{pool}",replica="0"}}']
            parts = [stats["pages"][pool][state] for state in ("held", "free", "cached")]
            assert sum(parts) == stats["pages"][pool]["total"]
            assert parts[0] > 0
        assert stats["latency_s"]["first_token"]["count"] == 2
        assert 0 < stats["latency_s"]["inter_token"]["p50"] <= stats["latency_s"]["inter_token"]["p99"]
        assert stats["uptime_s"] >= before["uptime_s"]
        assert stats["ranks"] == {"total": 1, "dead": []}
        server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 0)
        server.wait_until(lambda: httpx.get(f"{server.url}/stats").json()["pages"]["full"]["held"] == 0)


def test_stats_say_why_it_is_not_ready(tmp_path):
    with serving([{"text": "yes"}], tmp_path, loaded=False) as loading:
        stats = httpx.get(f"{loading.url}/stats").json()
        assert (stats["status"], stats["model"], stats["pages"]) == ("loading", None, None)
        assert "loaded" in stats["why"]
    with serving([{"text": "yes"}], tmp_path) as failing:
        failing.service.ranks = {0: True, 1: False, 2: True}
        failing.service.fail("rank 1 failed.")
        stats = httpx.get(f"{failing.url}/stats").json()
        assert (stats["status"], stats["why"]) == ("failed", "rank 1 failed.")
        assert stats["ranks"] == {"total": 3, "dead": [1]}
        assert httpx.get(f"{failing.url}/ready").json()["status"] == stats["status"]
        failing.service.is_over.set()
