"""How far a batch is: a bar in a terminal, else a line now and then, on standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gptoss_dist.batch.summary import Tally
from gptoss_dist.log import get_logger

logger = get_logger(__name__)

LINE_S = 30.0
"""Between two plain lines."""
_BAR_S = 0.2


class BatchProgress:
    """Shows what `tally` counts, of `left` records, until `close`."""

    def __init__(self, left: int, tally: Tally, line_s: float = LINE_S) -> None:
        """A terminal on standard error gets a bar."""
        self._left, self._tally, self._line_s = left, tally, line_s
        self._begun = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("records"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=left)
            self._bar.start()

    def show(self) -> None:
        """After every step; shown when it is time."""
        now = time.monotonic()
        if now - self._shown < (self._line_s if self._bar is None else _BAR_S):
            return
        self._shown = now
        if self._bar is None:
            logger.info("%s", self.line(now))
        else:
            self._bar.update(self._task, completed=self._tally.records, description=self._rates(now))

    def line(self, now: float) -> str:
        """One line about now."""
        left = max(0, self._left - self._tally.records)
        return f"{self._tally.records:,} records done, {left:,} left, {self._rates(now)}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _rates(self, now: float) -> str:
        passed = max(now - self._begun, 1e-9)
        rate, done = self._tally.generated / passed, self._tally.records
        remaining = f"{_clock(passed / done * max(0, self._left - done))} left" if done else "time left unknown"
        return f"{rate:,.0f} tokens/s, {remaining}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
