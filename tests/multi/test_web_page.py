"""The page at / in a real browser, against a live server that plays a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import live_server
import pytest
from headless import CHROMIUM, SHIFT, Browser, Page, browsing
from live_server import ANALYSIS, FINAL, LiveServer, serving

pytestmark = [
    pytest.mark.multi,
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium browser (Debian: apt-get install chromium)"),
]
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
BOOK = [
    {"match": "hello", "harmony": ANALYSIS.format("They greet me.") + FINAL.format(f"Hello! {SCRIPT} Bye.")},
    {"match": "again", "text": "The second answer."},
    {"match": "wide", "text": "w" * 3000},
    {"match": "cut", "harmony": "<|channel|>analysis<|message|>I think " + SCRIPT, "finish": "length"},
    {
        "match": "forever",
        "harmony": ANALYSIS.format("Hm. " * 20) + FINAL.format("on and on " * 2000),
        "delay_s": 0.01,
    },
]
ANSWERED = "document.querySelector('.answer:last-child .note').innerText.includes('tokens')"
NO_ROOM = 'document.querySelector("#failure").checkVisibility()'


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[LiveServer]:
    with serving(BOOK, tmp_path_factory.mktemp("script"), cache_tokens=32768) as one:
        yield one


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[[LiveServer], Page]]:
    """Opens a server's page; at the end no code has failed, and nothing was asked of another host."""
    visited: list[tuple[Page, str]] = []

    def go(server: LiveServer) -> Page:
        page = Page(browser)
        page.size(1600, 1000)
        page.open(f"{server.url}/")
        page.wait_for("document.querySelector('#status').innerText !== 'Connecting'")
        visited.append((page, server.url))
        return page

    yield go
    for page, url in visited:
        page.run("0")  # events before it have come by now
        assert page.events("Runtime.exceptionThrown") == []
        assert page.events("Runtime.consoleAPICalled") == []
        entries = [one["entry"] for one in page.events("Log.entryAdded")]
        assert [one for one in entries if one["source"] != "network"] == []
        asked = {one["request"]["url"] for one in page.events("Network.requestWillBeSent")}
        assert {one for one in asked if not one.startswith(f"{url}/")} == set()
        assert page.run("typeof window.hacked") == "undefined"
        page.close()


def ask(page: Page, text: str) -> None:
    page.run("document.querySelector('#prompt').focus()")
    page.write(text)
    page.press("Enter")


def bodies(page: Page) -> list[dict]:
    """What the page has posted so far."""
    page.run("0")
    asked = [one["request"] for one in page.events("Network.requestWillBeSent")]
    return [json.loads(one["postData"]) for one in asked if one["method"] == "POST"]


def test_an_answer_has_its_reasoning_folded_away_and_its_markup_as_text(server: LiveServer, visit):
    page = visit(server)
    ask(page, "hello")
    page.wait_for(ANSWERED)
    assert page.text(".final") == f"Hello! {SCRIPT} Bye."
    assert page.run("document.querySelectorAll('#log script, #log img').length") == 0
    assert page.text(".mine") == "hello"
    assert not page.is_seen("details .text")
    page.click("summary")
    page.wait_for("document.querySelector('details .text').checkVisibility()")
    assert page.text("details .text") == "They greet me."
    ask(page, "cut")
    page.wait_for(ANSWERED)
    assert "Cut off" in page.text(".answer:last-child .note")


def test_a_conversation_goes_on_until_a_new_one_begins(server: LiveServer, visit):
    page = visit(server)
    ask(page, " \n")
    page.run("document.querySelector('#prompt').value = ''; document.querySelector('#max-tokens').value = '0'")
    ask(page, "not with 0 tokens")
    page.run("document.querySelector('#prompt').value = ''; document.querySelector('#max-tokens').value = '2048'")
    for text in ("hello", "again"):
        ask(page, text)
        page.wait_for(ANSWERED)
    first, second = bodies(page)
    assert first["messages"] == [{"role": "user", "content": "hello"}]
    assert [one["role"] for one in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == f"Hello! {SCRIPT} Bye."
    assert ("reasoning_effort" in second, second["max_tokens"]) == (False, 2048)
    page.click("#new")
    assert page.run("document.querySelectorAll('.mine, .answer').length") == 0
    page.run("document.querySelector('#effort').value = 'high'; document.querySelector('#max-tokens').value = '7'")
    page.run("document.querySelector('#prompt').focus()")
    page.write("again")
    page.press("Enter", SHIFT)
    page.write("and again")
    page.press("Enter")
    page.wait_for(ANSWERED)
    third = bodies(page)[2]
    assert third["messages"] == [{"role": "user", "content": "again\nand again"}]
    assert (third["reasoning_effort"], third["max_tokens"]) == ("high", 7)


def test_tiles_and_charts_move_and_stop_frees_the_request(server: LiveServer, visit):
    page = visit(server)
    assert (page.text("#running"), page.text("#status"), page.text("#ranks")) == ("0", "Ready", "1 of 1")
    ask(page, "forever")
    page.wait_for("document.querySelector('#running').innerText === '1'")
    page.wait_for("Number(document.querySelector('#speed').innerText) > 5")
    page.wait_for("Number(document.querySelector('#full').innerText) > 0")
    page.wait_for("document.querySelector('#inter-token').innerText.endsWith('ms')")
    for chart in ("#speed-chart", "#pages-chart"):
        page.wait_for(f"document.querySelector('{chart} path.series-0').getAttribute('d').includes('L')")
    assert "now" in page.run("document.querySelector('#speed-chart').getAttribute('aria-label')")
    page.wait_for("document.querySelector('.final').innerText.includes('on and on')")
    assert not page.is_seen("#send")
    page.click("#stop")
    page.wait_for("document.querySelector('.note').innerText === 'Stopped.'")
    server.wait_until(lambda: server.metrics()['gptoss_requests_running{replica="0"}'] == 0, 3)
    server.wait_until(lambda: server.held_pages() == 0, 3)
    page.wait_for("document.querySelector('#running').innerText === '0'")
    assert page.is_seen("#send")
    ask(page, "again")
    page.wait_for(ANSWERED)
    assert page.text(".answer:last-child .final") == "The second answer."
    assert "on and on" in bodies(page)[1]["messages"][1]["content"]


def test_a_new_conversation_ends_the_answer_under_way(server: LiveServer, visit):
    page = visit(server)
    ask(page, "forever")
    page.wait_for("document.querySelector('.final')?.innerText.includes('on and on')")
    page.click("#new")
    server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 0, 3)
    page.wait_for("document.querySelector('#send').checkVisibility()")
    ask(page, "again")
    page.wait_for(ANSWERED)
    assert len(bodies(page)[1]["messages"]) == 1


def test_a_key_is_asked_for_and_kept_nowhere(visit, tmp_path):
    with serving(BOOK, tmp_path, keys=("secret",)) as guarded:
        page = visit(guarded)
        assert not page.is_seen("#key")
        ask(page, "hello")
        page.wait_for("document.activeElement.id === 'key'")
        assert "wants an API key" in page.text("#failure")
        page.write("schlüssel")
        page.press("Enter")
        page.wait_for("document.querySelector('#failure').innerText.includes('ASCII')")
        page.run("document.querySelector('#key').value = 'wrong'")
        page.press("Enter")
        page.wait_for("document.querySelector('#failure').innerText.includes('does not know this API key')")
        page.run("document.querySelector('#key').value = ''; document.querySelector('#key').focus()")
        page.write("secret")
        page.press("Enter")
        page.wait_for(ANSWERED)
        assert page.text(".final").startswith("Hello!")
        assert page.run("document.activeElement.id") == "prompt"
        assert not page.is_seen("#failure")
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"
        assert "secret" not in page.run(kept)
        assert page.run(kept).startswith('[{},{},"",')
        assert "secret" not in page.run("document.documentElement.outerHTML")
        page.open(f"{guarded.url}/")
        assert page.run("document.querySelector('#key').value") == ""


def test_a_full_queue_is_said_and_the_prompt_is_kept(visit, tmp_path):
    with serving(BOOK, tmp_path, max_waiting=0) as full:
        page = visit(full)
        ask(page, "hello")
        page.wait_for(NO_ROOM)
        assert "too much to do" in page.text("#failure")
        assert "Try again in 1 s" in page.text("#failure")
        assert page.run("document.querySelector('#prompt').value") == "hello"
        assert page.run("document.querySelectorAll('.mine, .answer').length") == 0
        assert page.is_seen("#empty")
        full.service.ranks = {0: True, 1: False, 2: True}
        page.wait_for("document.querySelector('#ranks').innerText === '2 of 3'")
        assert page.text("#dead") == "dead: 1"


def test_a_server_that_loads_is_said_until_it_is_ready(server: LiveServer, visit, tmp_path):
    with serving(BOOK, tmp_path, loaded=False) as loading:
        page = visit(loading)
        assert page.text("#status") == "Loading"
        assert "being loaded" in page.text("#banner")
        ask(page, "hello")
        page.wait_for(NO_ROOM)
        assert "not ready" in page.text("#failure")
        loading.service.open(server.service.model)
        page.wait_for("document.querySelector('#status').innerText === 'Ready'")
        assert not page.is_seen("#banner")


def test_a_dropped_server_is_said_until_it_is_back(visit, tmp_path, monkeypatch):
    with serving(BOOK, tmp_path) as first:
        page = visit(first)
        ask(page, "forever")
        page.wait_for("document.querySelector('.final')?.innerText.includes('on and on')")
        for line in list(first.front._server.server_state.connections):  # as if the machine had gone
            first.service._loop.call_soon_threadsafe(line.transport.abort)
        page.wait_for("document.querySelector('.note').innerText.startsWith('The connection was lost')")
        first.wait_until(lambda: first.metrics()["gptoss_requests_open"] == 0, 3)
        port = int(first.url.rpartition(":")[2])
    page.wait_for("document.querySelector('#status').innerText === 'No connection'")
    assert "No connection" in page.text("#banner")
    ask(page, "hello")
    page.wait_for(NO_ROOM)
    assert page.text("#failure") == "The server cannot be reached."
    bind = live_server.bind
    monkeypatch.setattr(live_server, "bind", lambda host, _: bind(host, port))
    with serving(BOOK, tmp_path):
        page.wait_for("document.querySelector('#status').innerText === 'Ready'")
        assert not page.is_seen("#banner")
        page.press("Enter")
        page.wait_for(ANSWERED)


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_everything_fits_and_can_be_read(server: LiveServer, visit, width: int, scheme: str):
    page = visit(server)
    page.size(width, 800, scheme)
    ask(page, "wide")
    page.wait_for(ANSWERED)
    for part in ("documentElement", "querySelector('#log')"):
        assert page.run(f"document.{part}.scrollWidth <= document.{part}.clientWidth"), part
    back, text = (page.run(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert (brightness(back) > brightness(text)) == (scheme == "light")
    assert abs(brightness(back) - brightness(text)) > 150
    last = page.run("document.querySelector('#new').getBoundingClientRect().right")
    assert last <= width


def brightness(colour: str) -> float:
    """Of rgb(r, g, b), from 0 to 255."""
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def test_all_of_it_can_be_reached_by_keys_and_has_a_name(server: LiveServer, visit):
    page = visit(server)
    page.run("document.querySelector('#prompt').focus()")
    reached = []
    for _ in range(4):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
    assert reached == ["effort", "max-tokens", "new", "send"]
    page.run("document.querySelector('#prompt').value = 'forever'")
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'stop' && document.querySelector('.note').innerText === ''")
    page.press("Enter")
    page.wait_for("document.querySelector('.note').innerText === 'Stopped.'")
    assert page.run("document.activeElement.id") == "prompt"
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "combobox", "spinbutton", "link", "log", "image", "region"}
    found = [(one["role"]["value"], one.get("name", {}).get("value")) for one in nodes if not one["ignored"]]
    assert [one for one in found if one[0].lower() in named and not one[1]] == []
    assert {("button", "Send"), ("textbox", "Prompt"), ("combobox", "Effort"), ("log", "Conversation")} <= set(found)


def test_tool_calls_are_shown_as_text(server: LiveServer, visit):
    page = visit(server)
    call = {"index": 0, "id": "call_1", "function": {"name": "get_weather", "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": text}} for text in ('{"city":', f'"{SCRIPT}"}}')]
    chunks = [{"choices": [{"delta": {"tool_calls": [one]}, "finish_reason": None}]} for one in (call, *parts)]
    page.run(
        "import('/web/answer.js').then(({Answer}) => { const answer = new Answer();"
        "document.querySelector('#log').append(answer.element);"
        f"for (const one of {json.dumps(chunks)}) answer.take(one);"
        "answer.end(); })"
    )
    assert page.text(".call") == f'calls get_weather {{"city":"{SCRIPT}"}}'


READ = """(async (content, size) => {
  const bytes = new TextEncoder().encode(content), pieces = [];
  for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
  const body = new ReadableStream({ pull(to) { pieces.length ? to.enqueue(pieces.shift()) : to.close(); } });
  window.fetch = async () => new Response(body);
  const { chatEvents } = await import("/web/stream.js"), said = [];
  try {
    for await (const event of chatEvents({}, "", new AbortController().signal)) said.push(event.text);
  } catch (error) { said.push(error.message); }
  return said;
})"""


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_stream_is_read_wherever_it_is_cut(server: LiveServer, visit, size: int):
    page = visit(server)
    page.run("window.fetched = window.fetch")
    texts = ["wörld", "日本 😀", "a\n\nb", ": no comment"]
    events = [f"data: {json.dumps({'text': text}, ensure_ascii=False)}\n\n" for text in texts]
    content = ": waiting\n\n".join([*events, ""])
    lost = "The connection was lost before the answer was complete."
    cases = [
        (content + "data: [DONE]\n\n", texts),
        (content.replace("\n", "\r\n") + "data: [DONE]\r\n\r\n", texts),
        (content, [*texts, lost]),
        (content + 'data: {"text": "half', [*texts, lost]),
        (content + 'data: {"error": {"message": "rank 1 failed."}}\n\n', [*texts, "rank 1 failed."]),
    ]
    for body, said in cases:
        assert page.run(f"{READ}({json.dumps(body)}, {size})") == said
    page.run("window.fetch = window.fetched")


def test_numbers_are_said_as_people_read_them(server: LiveServer, visit):
    page = visit(server)
    said = page.run(
        "import('/web/words.js').then(({age, duration, number}) => [[0.2, 59, 61, 7300, 200000].map(age),"
        "[null, 0.00012, 0.0147, 0.999, 1.234, 120.4].map(duration), [null, 0, 12.34, 1234.5].map(number)])"
    )
    assert said == [
        ["0 s", "59 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"],
        ["–", "0.12 ms", "15 ms", "1,000 ms", "1.2 s", "120 s"],
        ["–", "0", "12.3", "1,235"],
    ]
    tops = page.run("import('/web/chart.js').then(({niceTop}) => [0, 1, 1.1, 9, 10, 11, 305, 5001].map(niceTop))")
    assert tops == [1, 1, 2, 10, 10, 20, 500, 10000]
