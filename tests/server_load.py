"""Many streaming clients at once, some of which leave in the middle; light, so that the server has the machine."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server_streams import check_chat_stream, events_of

from gptoss_dist.model.tiny_conversations import CONVERSATIONS

MODEL = "openai/gpt-oss-20b"
PATH = "/v1/chat/completions"


@dataclass
class Load:
    """What came of it."""

    finished: int = 0
    left: int = 0
    refused: int = 0
    tokens: int = 0
    """Of finished answers."""
    wrong: list[str] = field(default_factory=list)
    by_body: Counter[int] = field(default_factory=Counter)


def bodies() -> list[dict[str, Any]]:
    """What the toy can be asked greedily, whole answers and such as are cut at their first tokens."""
    asked = []
    for limit in (100, 9):
        for one in CONVERSATIONS:
            tools = {"tools": list(one.options.tools)} if one.options.tools else {}
            fields = {"model": MODEL, "temperature": 0, "max_tokens": limit, "stream": True}
            usage = {"stream_options": {"include_usage": True}}
            asked.append({"messages": list(one.messages), **fields, **usage, **tools})
    return asked


async def post(url: str, body: dict[str, Any], leave_after: float | None = None) -> tuple[int, str] | None:
    """(status, content) of a request on a connection of its own; None if it left after so many seconds."""
    place = urlsplit(url)
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    try:
        return _answer(await asyncio.wait_for(reader.read(-1), leave_after))
    except TimeoutError:
        return None
    finally:
        writer.close()


def _answer(raw: bytes) -> tuple[int, str]:
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().splitlines()
    if "transfer-encoding: chunked" not in lines:
        return int(lines[0].split()[1]), rest.decode()
    content = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not size:
            raise ConnectionError("the answer was cut off")
        if (count := int(size, 16)) == 0:
            return int(lines[0].split()[1]), content.decode()
        content, rest = content + rest[:count], rest[count + 2 :]


def said(content: str) -> tuple[Any, ...]:
    """What a stream said, after all its rules are checked."""
    (one,), usage = check_chat_stream(events_of(content), usage=True)
    calls = tuple((call["name"], call["arguments"]) for call in one.calls)
    assert usage is not None
    return one.content, one.reasoning, calls, one.finish_reason, usage["completion_tokens"]


async def ask_alone(url: str, asked: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What is said to each body when nobody else asks."""
    out = []
    for body in asked:
        answer = await post(f"{url}{PATH}", body)
        assert answer is not None
        out.append(said(answer[1]))
    return out


def after(seconds: float) -> Callable[[Load], bool]:
    """Enough, so many seconds from now."""
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() >= end


async def run_load(
    url: str,
    asked: list[dict[str, Any]],
    alone: list[tuple[Any, ...]],
    clients: int,
    is_enough: Callable[[Load], bool],
    seed: int,
    leave_within_s: float = 2.0,
) -> Load:
    """`clients` that ask one thing after the other until `is_enough`; a third of what they ask they leave."""
    path, load = f"{url}{PATH}", Load()

    async def one_client(chance: random.Random) -> None:
        while not is_enough(load):
            which = chance.randrange(len(asked))
            leave = chance.random() < 1 / 3
            try:
                answer = await post(path, asked[which], chance.random() ** 2 * leave_within_s if leave else None)
            except (OSError, ConnectionError) as error:
                load.wrong.append(f"{type(error).__name__}: {error}")
                return
            if answer is None:
                load.left += 1
            elif answer[0] == 429:
                load.refused += 1
                await asyncio.sleep(0.2)
            elif answer[0] != 200 or (got := said(answer[1])) != alone[which]:
                load.wrong.append(f"body {which}: {answer} instead of {alone[which]}")
            else:
                load.finished += 1
                load.tokens += got[-1]
                load.by_body[which] += 1

    await asyncio.gather(*(one_client(random.Random(seed * 100_003 + index)) for index in range(clients)))
    return load


def resident_mb(pid: int) -> float:
    """Memory of a process in RAM, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
