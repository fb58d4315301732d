"""Answers on disk: one file for each process that ever worked on a batch, appended to line by line.

A line is written before the next one is begun, so a killed process loses none that was written; at most `SYNC_S` of
them are not yet synchronised, which matters only when the machine itself dies. A process never appends to a file of
another one: what a dead one left half-written at its file's end is passed over by whoever reads.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_dist.batch.records import key_of
from gptoss_dist.errors import BatchError

SYNC_S = 0.5
"""Seconds between two synchronisations; with the time that one takes, less than a second of work is at risk."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Found:
    """A whole line of a part file, and where it stands."""

    key: bytes
    content: dict[str, Any]
    offset: int
    length: int
    """Bytes, the line feed too."""


class PartWriter:
    """Appends to a new file; synchronises it in a thread of its own until `close`."""

    def __init__(self, file: Path, on_beat: Callable[[], None] = lambda: None) -> None:
        """`on_beat` is called by the thread each time; what it raises is raised by the next `write`."""
        self.file = file
        self._on_beat = on_beat
        try:
            self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise cannot_write(file, error) from None
        self._size = 0
        self._is_dirty = False
        self._failure: BatchError | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gptoss-part", daemon=True)
        self._thread.start()

    def write(self, content: dict[str, Any]) -> None:
        """Append a line. Raises BatchError if it cannot be written; then nothing of it is left in the file."""
        line = encode(content)
        with self._lock:
            self._check()
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
            except OSError as error:
                self._cut()
                raise cannot_write(self.file, error) from None
            self._size += len(line)
            self._is_dirty = True

    def sync(self) -> None:
        """Return once everything written is on disk. Raises BatchError."""
        with self._lock:
            self._check()
            self._sync()
            self._check()

    def check(self) -> None:
        """Raise what the thread met."""
        with self._lock:
            self._check()

    def close(self) -> None:
        """Synchronise for the last time, as far as that is possible, and end the thread."""
        self._over.set()
        self._thread.join()
        os.close(self._descriptor)

    def _keep(self) -> None:
        while True:
            last = self._over.wait(SYNC_S)
            with self._lock:
                is_dirty, self._is_dirty = self._is_dirty, False
            if is_dirty:
                self._sync()  # without the lock: nobody waits for the disk to write a line
            if last or self._failure is not None:
                return
            try:
                self._look()
                self._on_beat()
            except (OSError, BatchError) as error:
                self._failure = error if isinstance(error, BatchError) else cannot_write(self.file, error)

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._failure = self._failure or cannot_write(self.file, error)

    def _look(self) -> None:
        """A file that was removed can still be written to, and everything would be lost."""
        here, there = os.fstat(self._descriptor), self.file.stat()
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(errno.ENOENT, "another file is there now")

    def _cut(self) -> None:
        """Take back half a line; where even that fails, readers pass over it."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            return

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def cannot_write(file: Path, error: OSError) -> BatchError:
    """What to do about an output that cannot be written."""
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return BatchError(
            f"{file}: no room left ({why}). What was finished before is safe: make room and start the same command "
            "again; it goes on where it stopped."
        )
    if error.errno == errno.ENOENT:
        return BatchError(f"{file}: the output's folder, or this file in it, is gone. Nobody may remove it.")
    return BatchError(
        f"{file}: cannot be written: {why}. What was finished before is safe: start the same command again."
    )


def encode(content: dict[str, Any]) -> bytes:
    """A line of JSON; half characters, which UTF-8 cannot hold, are escaped."""
    try:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(content).encode() + b"\n"


@dataclass(frozen=True)
class Broken:
    """A line that is none: at the end of a file half of one (`is_torn`), elsewhere what a failing disk left."""

    offset: int
    length: int
    is_torn: bool


def read_part(file: Path, offset: int = 0) -> Iterator[Found | Broken]:
    """The lines of a part file from `offset` on, where a line begins."""
    with file.open("rb") as part:
        part.seek(offset)
        for line in part:
            is_torn = not line.endswith(b"\n")
            found = None if is_torn else _found(line, offset)
            yield found or Broken(offset, len(line), is_torn)
            offset += len(line)


def _found(line: bytes, offset: int) -> Found | None:
    try:
        content = json.loads(line)
        return Found(key_of(content["custom_id"]), content, offset, len(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
