"""The end of a batch: every record of the input has exactly one line, in the order of the input.

Several processes may do this at once: each writes a file of its own and renames it to the same content. Where two
lines answer one record, after a process that was taken for dead, the one of the part first by name is kept.
Memory: about 250 bytes a record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_dist.batch.part import Found, cannot_write, read_part
from gptoss_dist.batch.scan import Scan
from gptoss_dist.batch.summary import Tally


@dataclass(frozen=True)
class Merged:
    """What the parts held. With `missing` records nothing was written."""

    missing: tuple[int, ...]
    twice: int
    foreign: int
    """Lines of no record of the input."""


def merge(
    found: Scan, parts: Sequence[Path], output: Path, worker: str, tally: Tally, pulse: Callable[[], None]
) -> Merged:
    """Write `output` whole, at once; `tally` gets each of its lines, `pulse` is called for every line.

    Raises BatchError if it cannot be written.
    """
    wanted = {found.key(number) for number in range(found.records)}
    places: dict[bytes, tuple[int, int, int]] = {}
    twice = foreign = 0
    for index, part in enumerate(parts):
        for line in read_part(part):
            pulse()
            if not isinstance(line, Found):
                continue
            if line.key not in wanted:
                foreign += 1
            elif line.key in places:
                twice += 1
            else:
                places[line.key] = (index, line.offset, line.length)
                tally.line(line.content)
    missing = tuple(number for number in range(found.records) if found.key(number) not in places)
    if not missing:
        del wanted
        _write(found, parts, places, output.with_name(f"{output.name}.{worker}.new"), pulse).replace(output)
        sync_folder(output.parent)
    return Merged(missing, twice, foreign)


def sync_folder(folder: Path) -> None:
    """Names in a folder survive the machine's death too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(
    found: Scan,
    parts: Sequence[Path],
    places: dict[bytes, tuple[int, int, int]],
    file: Path,
    pulse: Callable[[], None],
) -> Path:
    opened = [os.open(part, os.O_RDONLY) for part in parts]
    try:
        with file.open("wb") as target:
            for number in range(found.records):
                index, offset, length = places[found.key(number)]
                target.write(os.pread(opened[index], length, offset))
                pulse()
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise cannot_write(file, error) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return file
