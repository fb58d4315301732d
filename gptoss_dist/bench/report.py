"""What a measurement prints, and the content of `--json`; once, whatever ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gptoss_dist.bench import table
from gptoss_dist.bench.plot import draw
from gptoss_dist.bench.statistics import RowResult
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.output import write_json, write_line
from gptoss_dist.schema.job.bench import BenchConf


def show_head(rows: int, job: BenchConf, facts: dict[str, Any]) -> None:
    """Print what is measured on what, before any of it."""
    write_line(table.head(facts))
    warm = "no warm-up: the first requests pay for it"
    if job.warmup_tokens:
        warm = f"warm-up before each row: one request a stream, up to {job.warmup_tokens} tokens, not counted"
    write_line(f"{rows} row{'s' if rows > 1 else ''}; {warm}; (n): of n samples")


def show(results: list[RowResult], wanted: int, job: BenchConf, facts: dict[str, Any]) -> dict[str, Any]:
    """Print the table, draw the plot, and make the content of `--json`."""
    partial = len(results) < wanted or any(one.status == "partial" for one in results)
    write_line(table.render(results))
    if partial:
        write_line(f"partial: the run was stopped, {len(results)} of {wanted} rows shown")
    if job.plot is not None:
        title = f"{facts.get('model') or facts.get('target')} on {facts.get('device') or 'a server'}"
        file = draw(results, title, job.plot)
        write_line(f"plot: {file}" if file else "no plot: no row of streams has numbers")
    failed = sum(one.errors for one in results)
    return {**facts, "partial": partial, "failed": failed, "rows": [one.content() for one in results]}


def unless_failed(content: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """What `show` made, if no request failed; else it is printed, and GptOssDistError ends the run."""
    if failed := content["failed"]:
        if as_json:  # the caller will not come to print it
            write_json(content)
        raise GptOssDistError(f"{failed} requests failed, and are not in the numbers. What they met stands above.")
    return content


class Once:
    """Shows results one time only: from the main thread, or where that is stuck, from the one that ends the run."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        """`make` shows them."""
        self._make, self._lock, self.done = make, threading.Lock(), threading.Event()

    def __call__(self) -> dict[str, Any] | None:
        """Show; None if that was done before."""
        with self._lock:
            if self.done.is_set():
                return None
            content = self._make()
            self.done.set()
            return content
