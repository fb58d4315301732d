"""What HTTP takes from the engine: a scripted engine at its own pace, alone and behind the server, streams at once.

    python tests/stress/http_overhead.py --streams 64 --delays-ms 20 10 5

A step of the scripted engine sleeps as a GPU's does, and each stream gets a token in it. Beside tokens a second it
says what a token costs the server's HTTP thread and its engine's thread: CPU microseconds, which other work on the
machine changes little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.scripted import Script, ScriptedEngine
from gptoss_dist.schema.engine import EngineConf

CACHE = 1_000_000
TICK = os.sysconf("SC_CLK_TCK")


def alone(streams: int, tokens: int, delay_s: float) -> float:
    """Tokens a second of the engine by itself, from the first token on."""
    script = Script(tuple([1000] * tokens), delay_s)
    engine = ScriptedEngine(lambda _: script, EngineConf(name="scripted", cache_tokens=CACHE, max_running=streams))
    for index in range(streams):
        engine.submit(Request(f"r{index}", (1, 2, 3), Sampling(max_tokens=tokens + 1, temperature=0.0)))
    engine.step()
    started, count = time.perf_counter(), 0
    while engine.has_work:
        count += sum(len(event.tokens) for event in engine.step())
    return count / (time.perf_counter() - started)


async def one_stream(url: str, tokens: int, seen: list[tuple[float, float, int]]) -> None:
    """Read one stream; (time of the first event with text, time of the last, tokens)."""
    place = urlsplit(url)
    body = json.dumps({"messages": [{"role": "user", "content": "go"}], "max_tokens": tokens, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    first, count, last = 0.0, 0, 0.0
    while content := await reader.read(1 << 16):
        if found := content.count(b'{"content":"'):
            last = time.perf_counter()
            first = first or last
            count += found
    writer.close()
    seen.append((first, last, count))


async def through_http(url: str, streams: int, tokens: int) -> float:
    """Tokens a second that the clients saw, from the first token to the last."""
    seen: list[tuple[float, float, int]] = []
    await asyncio.gather(*(one_stream(url, tokens, seen) for _ in range(streams)))
    assert all(count > 0.9 * tokens for *_, count in seen), seen[:3]
    return sum(one[2] for one in seen) / (max(one[1] for one in seen) - min(one[0] for one in seen))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a server's threads: the main thread is the engine's, the others are HTTP's."""
    out: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        key = "engine" if int(task.name) == pid else "http"
        for part, ticks in (("", fields[11]), (" kernel", fields[12])):
            out[key + part] = out.get(key + part, 0.0) + int(ticks) / TICK
    return out


def behind_http(streams: int, tokens: int, delay_s: float, folder: Path) -> tuple[float, dict[str, float]]:
    """(tokens a second, CPU microseconds a token by thread) through a server in a process of its own."""
    script = folder / "script.yaml"
    script.write_text(yaml.safe_dump([{"text": "one " * (tokens - 4), "delay_s": delay_s}]))
    words = [
        "engine=scripted",
        f"engine.script={script}",
        f"engine.cache_tokens={CACHE}",
        f"engine.max_running={streams}",
    ]
    command = [sys.executable, "-m", "gptoss_dist", "serve", "model=tiny", *words, "job.port=0", "--json"]
    with (folder / "err").open("w") as err:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        asyncio.run(through_http(url, 1, tokens))
        before = thread_seconds(server.pid)
        speed = asyncio.run(through_http(url, streams, tokens))
        after = thread_seconds(server.pid)
    finally:
        server.terminate()
        server.wait(20)
    return speed, {name: (after[name] - before.get(name, 0.0)) / (streams * tokens) * 1e6 for name in after}


def main() -> None:
    """Print a line for each delay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--delays-ms", type=float, nargs="+", default=[20.0, 10.0, 5.0])
    args = parser.parse_args()
    for delay_ms in args.delays_ms:
        own = alone(args.streams, args.tokens, delay_ms / 1e3)
        with tempfile.TemporaryDirectory() as folder:
            speed, cost = behind_http(args.streams, args.tokens, delay_ms / 1e3, Path(folder))
        costs = ", ".join(f"{name} {value:.1f}" for name, value in sorted(cost.items()))
        print(
            f"{args.streams} streams, {delay_ms:g} ms a step: engine alone {own:.0f} tokens/s, "
            f"through HTTP {speed:.0f} ({100 * (speed / own - 1):+.1f} %); CPU us a token: {costs}",
            flush=True,
        )


if __name__ == "__main__":
    main()
