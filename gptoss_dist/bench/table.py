"""The table of a run, readable on a terminal and in a log file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from gptoss_dist.bench.load import Kind
from gptoss_dist.bench.statistics import RowResult

_WIDTH = 200
_COLUMNS: tuple[tuple[str, Callable[[RowResult], str]], ...] = (
    ("load", lambda one: one.label),
    ("output tok/s in all", lambda one: _number(one.output_tokens_per_s, one.kind != Kind.prefill.value)),
    ("tok/s a stream (n)", lambda one: _of(_number(one.decode_tokens_per_s), one.decode_samples)),
    ("first token ms p50 / p99 (n)", lambda one: _of(_pair(one.ttft_p50_ms, one.ttft_p99_ms), one.ttft_samples)),
    ("between tokens ms p50 / p99 (n)", lambda one: _of(_pair(one.itl_p50_ms, one.itl_p99_ms), one.itl_samples)),
    ("prefill tok/s (n)", lambda one: _of(_number(one.prefill_tokens_per_s), one.prefill_samples)),
    ("limit tok/s", lambda one: "unknown" if one.limit_tokens_per_s is None else _number(one.limit_tokens_per_s)),
    ("reached", lambda one: _percent(one.fraction)),
    ("in all", lambda one: _percent(one.fraction_in_all)),
    ("notes", lambda one: _notes(one)),
)


def render(results: Sequence[RowResult]) -> str:
    """The rows as text, one line each; a row that does not fit says so with its numbers on a line below.

    (n): a figure of n requests, gaps between tokens, or waves of prompts.
    """
    table = Table(box=MARKDOWN, pad_edge=True)
    for number, (name, _) in enumerate(_COLUMNS):
        last = number == len(_COLUMNS) - 1
        table.add_column(name, justify="left" if number == 0 or last else "right", no_wrap=number == 0)
    for one in results:
        table.add_row(*(cell(one) for _, cell in _COLUMNS))
    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None, highlight=False, markup=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    lines += [f"{one.label}: {one.status}" for one in results if one.status.startswith("does not fit")]
    for one in results:
        lines += [f"{one.label}: {count} × {message}" for message, count in one.messages.items()]
    return "\n".join([*lines, *sorted({f"limit: {one.limit_note}" for one in results if one.limit_note})])


def line(one: RowResult) -> str:
    """A row in one line, for the log of a long run."""
    speed = one.prefill_tokens_per_s if one.kind == Kind.prefill.value else one.output_tokens_per_s
    first, between = _pair(one.ttft_p50_ms, one.ttft_p99_ms), _pair(one.itl_p50_ms, one.itl_p99_ms)
    return (
        f"{one.label}: {_number(speed)} tokens/s in all, {_number(one.decode_tokens_per_s)} a stream, "
        f"first token {first} ms, between tokens {between} ms"
    )


def head(machine: Mapping[str, Any]) -> str:
    """What was measured where, in three lines at most."""
    keys = ("device", "devices", "model", "plan", "backend", "kernels", "target", "endpoint", "date")
    first = [f"{name}: {_flat(machine[name])}" for name in keys if machine.get(name) is not None]
    versions = machine.get("versions", {})
    second = [f"{name} {version}" for name, version in versions.items() if version != "absent"]
    ready = machine.get("ready")
    third = [f"ready after {_flat(ready)}"] if ready else []
    return "\n".join(line for line in ("; ".join(first), ", ".join(second), *third) if line)


def _flat(value: Any) -> str:
    return ", ".join(f"{name}={one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)


def _number(value: float | None, shown: bool = True) -> str:
    if value is None or not shown:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _pair(middle: float | None, high: float | None) -> str:
    if middle is None or high is None:
        return "-"
    digits = 0 if high >= 1000 else 1 if high >= 100 else 2
    return f"{middle:.{digits}f} / {high:.{digits}f}"


def _of(figure: str, samples: int) -> str:
    return f"{figure} ({samples:,})" if samples else figure


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _notes(one: RowResult) -> str:
    notes = [] if one.status == "done" else [one.status.partition(":")[0]]
    if one.loss is not None:
        notes.append(f"loss {100 * one.loss:.0f} %")
    if one.errors:
        notes.append(f"{one.errors} failed")
    if one.short:
        notes.append(f"{one.short} ended early")
    return ", ".join(notes)
