"""Records to answer, one by one, from the shares that this process claims; how far each of those is.

The input is read forward, as a stream; taking over a share from before begins it again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptoss_dist.batch.finished import Finished
from gptoss_dist.batch.records import Record
from gptoss_dist.batch.scan import Scan
from gptoss_dist.batch.shares import Claim, Shares
from gptoss_dist.schema.job.batch import BatchOrder

_AGAIN_S = 1.0
"""Between two looks for a share, when there was none."""


class Feed:
    """Whoever takes a record says `answered` once its line is written."""

    def __init__(
        self,
        found: Scan,
        paths: Sequence[Path],
        shares: Shares,
        finished: Finished,
        size: int,
        order: BatchOrder,
        sync: Callable[[], None],
    ) -> None:
        """`size`: records of a share; `sync` returns once all written lines are on disk."""
        self._scan, self._paths, self._shares, self._finished = found, tuple(paths), shares, finished
        self._size, self._order, self._sync = size, order, sync
        self._left: dict[int, int] = {}
        self._ready: Iterator[Record] = iter(())
        self._stream: Iterator[Record] = iter(())
        self._place: int | None = None
        self._look_at = 0.0

    @property
    def count(self) -> int:
        """Of shares."""
        return -(-self._scan.records // self._size)

    def share_of(self, number: int) -> int:
        """The share of a record."""
        return number // self._size

    def next(self) -> Record | None:
        """A record without a line; None if there is none for this process now."""
        while True:
            record = next(self._ready, None)
            if record is not None:
                return record
            if time.monotonic() < self._look_at:
                return None
            claim = self._shares.claim(self.count)
            if claim is None:
                self._look_at = time.monotonic() + _AGAIN_S
                return None
            self._ready = iter(self._open(claim))

    def answered(self, record: Record) -> None:
        """The record's line is written."""
        self._finished.add(record.key)
        share = self.share_of(record.number)
        self._left[share] -= 1
        if not self._left[share]:
            del self._left[share]
            self._close(share)

    def _open(self, claim: Claim) -> list[Record]:
        """The records of a share that have no line yet, in the order wanted."""
        if claim.taken_over:
            own = self._shares.part
            self._finished.look(part for part in self._shares.parts() if part != own)
        records = [one for one in self._records(claim.share) if one.key not in self._finished]
        if not records:
            self._close(claim.share)
            return []
        self._left[claim.share] = len(records)
        if self._order is BatchOrder.longest_first:
            records.sort(key=lambda one: -one.size)
        return records

    def _records(self, share: int) -> Iterator[Record]:
        start = share * self._size
        if self._place is None or start < self._place:
            self._stream, self._place = self._scan.records_of(self._paths), 0
        skipped, self._place = start - self._place, start + self._size
        return itertools.islice(self._stream, skipped, skipped + self._size)

    def _close(self, share: int) -> None:
        self._sync()
        self._shares.finish(share)
