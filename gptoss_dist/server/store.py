"""Responses that can be asked for later, in this process's memory: they end with the server.

A conversation is a chain of responses, which share the items of their common past. Each response holds all items of its
conversation, so a chain does not break when an earlier response is deleted or evicted; an item is counted, and kept,
once. Items are JSON in UTF-8, so that the bytes counted are those used, but for Python's own 33 bytes an object.

Evicted is what was used longest ago, a response at a time, as soon as there are more responses or more bytes than
allowed; one that is larger than all the room is not kept at all. To be read, or continued, is to be used.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_REFERENCE = 8
"""Bytes of one reference to an item."""


def encode(content: Any) -> bytes:
    """JSON in UTF-8, compact."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Record:
    """A response that is finished.

    `past`, `input` and `output` are the items of the conversation, in order: those before this request, its own, and
    what the model said. `log` are the events of a background stream, as they were sent; None if there was none.
    """

    id: str
    response: bytes
    past: tuple[bytes, ...] = ()
    input: tuple[bytes, ...] = ()
    output: tuple[bytes, ...] = ()
    log: tuple[bytes, ...] | None = None

    @property
    def conversation(self) -> tuple[bytes, ...]:
        """What a response that continues this one has as its `past`."""
        return (*self.past, *self.input, *self.output)

    @property
    def own_bytes(self) -> int:
        """Of what no other response shares."""
        return len(self.response) + sum(map(len, self.log or ())) + _REFERENCE * len(self.conversation)


class ResponseStore:
    """At most `most` responses and `most_bytes` bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """Empty."""
        self.most, self.most_bytes = most, most_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._holders: dict[int, int] = {}
        """How many responses hold an item, by its identity."""
        self._by_item: dict[str, tuple[bytes, str]] = {}
        """(item, the response that brought it) by the item's id."""
        self.bytes = 0
        """In use."""

    def __len__(self) -> int:
        """Responses."""
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        """Whether there is a response of this id; not a use."""
        return name in self._records

    def put(self, record: Record) -> None:
        """Add a response, or put it in the place of the one with its id; then evict."""
        self.delete(record.id)
        self._records[record.id] = record
        self.bytes += record.own_bytes
        for item in record.conversation:
            held = self._holders.get(id(item), 0)
            self._holders[id(item)] = held + 1
            self.bytes += len(item) if not held else 0
        for item, name in _named((*record.input, *record.output)):
            self._by_item.setdefault(name, (item, record.id))
        self.trim()

    def get(self, name: str) -> Record | None:
        """The response, which is used by this."""
        if name not in self._records:
            return None
        self._records.move_to_end(name)
        return self._records[name]

    def item(self, name: str) -> dict[str, Any] | None:
        """A copy of the item of this id, while the response that brought it is there; from any thread."""
        found = self._by_item.get(name)
        return None if found is None else json.loads(found[0])

    def delete(self, name: str) -> bool:
        """Forget a response; whether there was one."""
        record = self._records.pop(name, None)
        if record is None:
            return False
        self.bytes -= record.own_bytes
        for item in record.conversation:
            self._holders[id(item)] -= 1
            if not self._holders[id(item)]:
                del self._holders[id(item)]
                self.bytes -= len(item)
        for _, item_name in _named((*record.input, *record.output)):
            if self._by_item.get(item_name, (b"", ""))[1] == name:
                del self._by_item[item_name]
        return True

    def grow(self, size: int) -> None:
        """Count bytes that are held for a response that is not finished, or, below 0, no longer."""
        self.bytes += size
        self.trim()

    def trim(self) -> None:
        """Evict until everything is within its limits; what is not finished cannot be evicted."""
        while self._records and (len(self._records) > self.most or self.bytes > self.most_bytes):
            self.delete(next(iter(self._records)))


def _named(items: Sequence[bytes]) -> Iterator[tuple[bytes, str]]:
    return ((item, json.loads(item)["id"]) for item in items)
