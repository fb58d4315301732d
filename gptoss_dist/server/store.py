"""Responses that can be asked for later, in this process's memory: they end with the server.

A conversation is a chain of responses, which share the items of their common past. Each response holds all items of its
conversation, so a chain does not break when an earlier response is deleted or evicted; an item is counted, and kept,
once. Items are JSON in UTF-8, so that the bytes counted are those used, but for Python's own 33 bytes an object.

Evicted is what was used longest ago, a response at a time, as soon as there are more responses or more bytes than
allowed; one that is larger than all the room is not kept at all, and takes no other's place. To be read, or continued,
is to be used.

The logs of background streams, of those that run too, have half of the room at most, for a log is many times what it
tells of. Beyond that the oldest finished one goes, then the oldest events of the longest that runs; no response does.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptoss_dist.server.event_log import EventLog

_REFERENCE = 8
"""Bytes of one reference to an item."""
_LOGS = 2
"""Logs have one part of so many of the room."""


def encode(content: Any) -> bytes:
    """JSON in UTF-8, compact."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, eq=False)
class StoredItem:
    """An item of a conversation and its id; the same object wherever it is shared."""

    id: str
    content: bytes

    @property
    def decoded(self) -> dict[str, Any]:
        """A copy of the item."""
        item: dict[str, Any] = json.loads(self.content)
        return item


def stored(items: Sequence[dict[str, Any]]) -> tuple[StoredItem, ...]:
    """Items as they are kept."""
    return tuple(StoredItem(str(item["id"]), encode(item)) for item in items)


@dataclass(frozen=True)
class Record:
    """A response that is finished.

    `past`, `input` and `output` are the items of the conversation, in order: those before this request, its own, and
    what the model said. `log` are the events of a background stream; None if there was none, or they are gone.
    """

    id: str
    response: bytes
    past: tuple[StoredItem, ...] = ()
    input: tuple[StoredItem, ...] = ()
    output: tuple[StoredItem, ...] = ()
    log: EventLog | None = None

    @property
    def conversation(self) -> tuple[StoredItem, ...]:
        """What a response that continues this one has as its `past`."""
        return (*self.past, *self.input, *self.output)

    @property
    def own_bytes(self) -> int:
        """Of what no other response shares, without the log."""
        return len(self.response) + _REFERENCE * len(self.conversation)

    @property
    def whole_bytes(self) -> int:
        """If it were alone, without the log."""
        return self.own_bytes + sum(len(item.content) for item in {id(one): one for one in self.conversation}.values())


class ResponseStore:
    """At most `most` responses and `most_bytes` bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """Empty."""
        self.most, self.most_bytes = most, most_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._logs: dict[EventLog, bool] = {}
        """Every log that is counted, and whether its response is finished."""
        self._holders: dict[int, int] = {}
        """How many responses hold an item, by its identity."""
        self._by_item: dict[str, tuple[StoredItem, str]] = {}
        """(item, the response that brought it) by the item's id."""
        self.bytes = 0
        """In use, logs too."""
        self.log_bytes = 0

    def __len__(self) -> int:
        """Responses."""
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        """Whether there is a response of this id; not a use."""
        return name in self._records

    @property
    def keeps_any(self) -> bool:
        """Whether it has room at all."""
        return self.most > 0 and self.most_bytes > 0

    def put(self, record: Record) -> None:
        """Add a response, or put it in the place of the one with its id; then evict."""
        self.delete(record.id)
        if not self.keeps_any or record.whole_bytes > self.most_bytes:
            self.discard(record.log)
            return
        if record.log is not None:
            self._logs[record.log] = True
        self._records[record.id] = record
        self.bytes += record.own_bytes
        for item in record.conversation:
            held = self._holders.get(id(item), 0)
            self._holders[id(item)] = held + 1
            self.bytes += len(item.content) if not held else 0
        for item in (*record.input, *record.output):
            self._by_item.setdefault(item.id, (item, record.id))
        self._trim()

    def get(self, name: str) -> Record | None:
        """The response, which is used by this."""
        if name not in self._records:
            return None
        self._records.move_to_end(name)
        return self._records[name]

    def item(self, name: str) -> dict[str, Any] | None:
        """A copy of the item of this id, while the response that brought it is there; from any thread."""
        found = self._by_item.get(name)
        return None if found is None else found[0].decoded

    def delete(self, name: str) -> bool:
        """Forget a response; whether there was one."""
        record = self._records.pop(name, None)
        if record is None:
            return False
        self.discard(record.log)
        self.bytes -= record.own_bytes
        for item in record.conversation:
            self._holders[id(item)] -= 1
            if not self._holders[id(item)]:
                del self._holders[id(item)]
                self.bytes -= len(item.content)
        for item in (*record.input, *record.output):
            if item.id in self._by_item and self._by_item[item.id][1] == name:
                del self._by_item[item.id]
        return True

    def new_log(self) -> EventLog:
        """A log for a response that runs; it is counted until its response is gone, or it is discarded."""
        log = EventLog(self._log_changed)
        self._logs[log] = False
        return log

    def discard(self, log: EventLog | None) -> None:
        """Count a log that nothing is added to no longer; who is reading it may read on."""
        if log is not None and self._logs.pop(log, None) is not None:
            self.bytes -= log.bytes
            self.log_bytes -= log.bytes

    def _log_changed(self, size: int) -> None:
        self.bytes += size
        self.log_bytes += size
        if size > 0:
            self._trim()

    def _trim(self) -> None:
        """Evict until everything is within its limits, but for the response that was used last."""
        while self.log_bytes > self.most_bytes // _LOGS and self._shorten_logs():
            pass
        while len(self._records) > self.most or (self.bytes > self.most_bytes and len(self._records) > 1):
            self.delete(next(iter(self._records)))
        while self.bytes > self.most_bytes and self._shorten_logs():
            pass

    def _shorten_logs(self) -> bool:
        """Let go of a finished log, else of some events of one that runs; whether there were any."""
        for name, record in self._records.items():
            if record.log is not None:
                self._records[name] = replace(record, log=None)
                self.discard(record.log)
                return True
        running = [log for log, is_finished in self._logs.items() if not is_finished]
        longest = max(running, key=lambda log: log.bytes, default=None)
        return longest is not None and longest.shorten()
