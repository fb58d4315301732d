"""The first pass over the input: how many records there are and which ids come twice. Nothing is kept of the records.

Every record has an id of its own, by which its answer is found after a restart. A record whose id has been used before
gets the id `ID#N` with its number N, counted from 1, and an error line: two answers of one id could not be told apart.
A record without an id has its line's number, or `FILE:LINE` where there are several files; an input in which another
record names that very id is refused: whoever reads the output would take the one for the other.

Memory: about 100 bytes a record during the pass; afterwards 16 bytes a record.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_dist.batch.records import KEY_BYTES, Record, Refusal, key_of, parse
from gptoss_dist.batch.sources import Line, Source, read_lines
from gptoss_dist.errors import PromptError


@dataclass(frozen=True)
class Scan:
    """What the first pass found."""

    sources: tuple[Source, ...]
    records: int
    renamed: dict[int, str]
    """Number of a record whose id was used before → its own id."""
    without_id: int
    refused: int
    """Records that ask for nothing that can be answered, the repeated ones too."""
    first_refusal: str | None
    """Why the first of them does."""
    keys: bytes
    """The keys of all ids, one after the other."""
    column: str | None = None
    """Of tables: what a row asks for."""

    def key(self, number: int) -> bytes:
        """The key of a record's id."""
        return self.keys[KEY_BYTES * number : KEY_BYTES * (number + 1)]

    @property
    def digest(self) -> str:
        """Differs where the input does, whatever its files are called."""
        return hashlib.sha256("\n".join(one.digest for one in self.sources).encode()).hexdigest()

    def records_of(self, paths: Sequence[Path]) -> Iterator[Record]:
        """The second pass: all records in order, each with the id that it has for good."""
        for number, line in enumerate(read_lines(paths, column=self.column)):
            record = _record(line, number, len(paths) > 1)
            yield _renamed(record, self.renamed[number]) if number in self.renamed else record


def scan(paths: Sequence[Path], pulse: Callable[[], None] = lambda: None, column: str | None = None) -> Scan:
    """Read everything once; `pulse` is called for every record. Raises PromptError for a file that cannot be read.

    Also for a record that names the id which another has only by its place.
    """
    sources: list[Source] = []
    seen: dict[bytes, bool] = {}
    keys = bytearray()
    renamed: dict[int, str] = {}
    number = without_id = refused = 0
    first_refusal: str | None = None
    for number, line in enumerate(read_lines(paths, sources, column), 1):
        record = _record(line, number - 1, len(paths) > 1)
        without_id += not record.has_id
        name = record.id
        if seen.get(record.key, record.has_id) != record.has_id:
            raise _clash(record, paths, column)
        while key_of(name) in seen:
            name = f"{name}#{number}"
        if name != record.id:
            renamed[number - 1] = name
        refused += record.refusal is not None or name != record.id
        if record.refusal is not None and first_refusal is None:
            first_refusal = record.refusal.message
        keys += (key := key_of(name))
        seen[key] = record.has_id
        pulse()
    return Scan(tuple(sources), number, renamed, without_id, refused, first_refusal, bytes(keys), column)


def _record(line: Line, number: int, several: bool) -> Record:
    place = f"{line.path}:{line.number}"
    return parse(line.content, number, place, place if several else str(line.number))


def _clash(record: Record, paths: Sequence[Path], column: str | None) -> PromptError:
    """Two records go by one id, `record` and one before it, and only one of them names it."""
    lines = enumerate(read_lines(paths, column=column))
    others = (_record(line, number, len(paths) > 1) for number, line in lines)
    other = next(one for one in others if one.id == record.id)
    named, unnamed = (record, other) if record.has_id else (other, record)
    return PromptError(
        f"job.input: {named.where} has the id {named.id!r}, by which {unnamed.where} goes too: it has none, and its "
        "place stands for it. Give every record an id, or none."
    )


def _renamed(record: Record, name: str) -> Record:
    message = f"{record.where}: the id {record.id!r} was used before. Ids are unique within a batch."
    return dataclasses.replace(record, id=name, refusal=Refusal(400, "duplicate_id", message))
