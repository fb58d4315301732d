"""Which records have a line on disk already, whoever wrote it. Memory: about 100 bytes a finished record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from gptoss_dist.batch.part import Broken, read_part
from gptoss_dist.log import get_logger

logger = get_logger(__name__)


class Finished:
    """Keys of the ids that have a line; `look` adds what the part files have gained."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._keys: set[bytes] = set()
        self._read: dict[Path, int] = {}

    def __contains__(self, key: bytes) -> bool:
        """Whether the record of this key has its line."""
        return key in self._keys

    def __len__(self) -> int:
        """How many records have theirs."""
        return len(self._keys)

    def add(self, key: bytes) -> None:
        """A line that this process wrote itself."""
        self._keys.add(key)

    def look(self, parts: Iterable[Path], pulse: Callable[[], None] = lambda: None) -> None:
        """Read on in the part files of others; `pulse` is called for every line."""
        for file in parts:
            for line in read_part(file, self._read.get(file, 0)):
                if isinstance(line, Broken):
                    self._pass_over(file, line)
                    if line.is_torn:
                        break  # its writer may still be at it
                else:
                    self._keys.add(line.key)
                self._read[file] = line.offset + line.length
                pulse()

    def _pass_over(self, file: Path, line: Broken) -> None:
        what = "half a line at its end" if line.is_torn else f"a broken line at byte {line.offset}"
        logger.info("%s: %s (%d bytes) is passed over; its record is answered again.", file, what, line.length)
