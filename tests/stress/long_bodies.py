"""How long streams stand still while a long body is read, encoded and refused, on a server with a scripted engine.

    python tests/stress/long_bodies.py

Streams get a token every 10 ms; beside them bodies of 7.9 MB come one after another, each far beyond the context. For
each kind it prints how long the body took, and the longest silence of any stream, with and without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import yaml

SIZE = 7_900_000
STREAMS = 4
PROSE = 'The quick brown fox\njumps over the "lazy" dog, again and again. '


def messages(count: int, content: object) -> dict:
    return {"messages": [{"role": "user", "content": content}] * count}


def bodies() -> dict[str, dict]:
    """By what they are made of, each of about SIZE bytes."""
    parts = [{"type": "text", "text": "a"}]
    return {
        "one text": messages(1, PROSE * (SIZE // (len(PROSE) + 3))),
        "instructions": {"messages": [{"role": "system", "content": PROSE * (SIZE // (len(PROSE) + 3))}]},
        "8,000 messages": messages(8000, PROSE * (SIZE // 8000 // (len(PROSE) + 3))),
        "many parts": messages(1, parts * (SIZE // 31)),
        "200,000 messages": messages(200_000, "a"),
        "token ids": {"prompt": [100_000] * (SIZE // 8)},
    }


def stream(url: str, gaps: list[float], stop: threading.Event) -> None:
    """Read streams until told to stop; the silences of each."""
    body = {**messages(1, "go"), "stream": True}
    while not stop.is_set():
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            last = None
            for _ in answer.iter_raw():
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now
                if stop.is_set():
                    return


def longest_gap(url: str, work) -> tuple[float, object]:
    """(the longest silence of a stream while `work` is done, in seconds; what `work` gives)."""
    gaps: list[float] = []
    stop = threading.Event()
    readers = [threading.Thread(target=stream, args=(url, gaps, stop)) for _ in range(STREAMS)]
    for reader in readers:
        reader.start()
    while len(gaps) < 10 * STREAMS:
        time.sleep(0.01)
    gaps.clear()
    result = work()
    stop.set()
    for reader in readers:
        reader.join()
    return max(gaps), result


def post(url: str, path: str, content: bytes) -> tuple[float, int]:
    """(seconds, status)."""
    started = time.perf_counter()
    answer = httpx.post(f"{url}{path}", content=content, headers={"Content-Type": "application/json"}, timeout=120)
    return time.perf_counter() - started, answer.status_code


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.yaml"
        script.write_text(yaml.safe_dump([{"text": "one " * 5000, "delay_s": 0.01}]))
        words = ["engine=scripted", f"engine.script={script}", "engine.cache_tokens=131072", "job.port=0"]
        command = [sys.executable, "-m", "gptoss_dist", "serve", "model=tiny", *words, "--json"]
        with (Path(folder) / "err").open("w") as err:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            gap, _ = longest_gap(url, lambda: time.sleep(5))
            print(f"no body: longest silence {1e3 * gap:.0f} ms", flush=True)
            for name, body in bodies().items():
                content = json.dumps(body).encode()
                path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
                gap, (seconds, status) = longest_gap(url, lambda p=path, c=content: post(url, p, c))
                size = len(content) / 1e6
                print(
                    f"{name}, {size:.1f} MB: {status} after {seconds:.2f} s, longest silence {1e3 * gap:.0f} ms",
                    flush=True,
                )
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
