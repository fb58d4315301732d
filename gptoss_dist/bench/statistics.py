"""From the records of a load to its numbers. Plain arithmetic over lists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gptoss_dist.bench.load import BASELINE_TOKENS, Kind, Row
from gptoss_dist.bench.records import Loads, Record
from gptoss_dist.limits import Limit


@dataclass
class RowResult:
    """One line of the table; None: nothing to say. Times in milliseconds where named `_ms`, else in seconds.

    Only requests without an error count, but for `errors`.
    """

    label: str
    kind: str
    streams: int
    input_tokens: int
    output_tokens: int
    requests: int
    rate: float | None
    status: str = "done"
    """`done`, `partial` if the run was stopped, or `does not fit: …`."""
    finished: int = 0
    wall_s: float | None = None
    """From the first request's due time to the last token."""
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    output_tokens_per_s: float | None = None
    """All output tokens over `wall_s`."""
    decode_tokens_per_s: float | None = None
    """Of one stream between its first and its last token; the median over requests."""
    decode_samples: int = 0
    """Requests in that figure; so of the others."""
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    ttft_samples: int = 0
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None
    itl_samples: int = 0
    prefill_tokens_per_s: float | None = None
    """Prompt tokens of a wave over the time until the last of them has its first token; the median over waves: the
    first `streams` requests are one, and of a single stream every prompt is."""
    prefill_samples: int = 0
    limit_tokens_per_s: float | None = None
    """What the hardware allows: output tokens of all streams while decoding, or prompt tokens of a prefill row."""
    limit_note: str = ""
    fraction: float | None = None
    """Of the limit: all streams while decoding, or prefill."""
    fraction_in_all: float | None = None
    """Of the limit: `output_tokens_per_s`, which pays for prefill too; None for prefill."""
    loss: float | None = None
    """Speed lost against one stream after a prompt of 1,024 tokens, for long contexts."""
    short: int = 0
    """Requests whose output ended before the tokens that were asked for."""
    errors: int = 0
    """Requests that failed, those of the warm-up included."""
    messages: dict[str, int] = field(default_factory=dict)
    """How often each error was met."""

    def content(self) -> dict[str, Any]:
        """For JSON, floats to six significant digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` % lie, between neighbours by a straight line; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def blank(row: Row, status: str = "done") -> RowResult:
    """The line of a row that has no numbers."""
    return RowResult(
        label=row.label,
        kind=row.kind.value,
        streams=row.streams,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        requests=row.requests,
        rate=row.rate,
        status=status,
    )


def summarize(row: Row, loads: Loads, partial: bool = False) -> RowResult:
    """The line of a row from the records of its requests."""
    result = blank(row, "partial" if partial else "done")
    every = (*loads.warm_up, *loads.measured, *loads.first_tokens)
    result.messages = dict(Counter(one.error for one in every if one.error is not None))
    result.errors = sum(result.messages.values())
    good = [one for one in loads.measured if one.error is None]
    result.finished = sum(one.finished for one in good)
    result.short = sum(one.finished and one.output_tokens < one.wanted_tokens for one in good)
    answered = _answered(loads.measured)
    if not answered:
        return result
    _throughput(result, answered)
    firsts = [*answered, *_answered(loads.first_tokens)]
    waits = [seconds for one in firsts if (seconds := one.time_to_first) is not None]
    gaps = [gap for one in answered for gap in one.gaps]
    (result.ttft_p50_ms, result.ttft_p99_ms), result.ttft_samples = _milliseconds(waits), len(waits)
    (result.itl_p50_ms, result.itl_p99_ms), result.itl_samples = _milliseconds(gaps), len(gaps)
    if row.rate is None:
        waves = [[one] for one in firsts] if row.streams == 1 else [_answered(loads.measured[: row.streams])]
        rates = [rate for wave in waves if (rate := _prefill_rate(wave)) is not None]
        result.prefill_tokens_per_s, result.prefill_samples = percentile(rates, 50), len(rates)
    return result


def _answered(records: Sequence[Record]) -> list[Record]:
    return [one for one in records if one.error is None and one.arrivals]


def _throughput(result: RowResult, answered: Sequence[Record]) -> None:
    wall = max(one.arrivals[-1][0] for one in answered) - min(one.due for one in answered)
    result.wall_s = wall
    result.total_input_tokens = sum(one.prompt_tokens for one in answered)
    result.total_output_tokens = sum(one.output_tokens for one in answered)
    result.output_tokens_per_s = result.total_output_tokens / wall if wall > 0 else None
    rates = [rate for one in answered if (rate := one.decode_rate) is not None]
    result.decode_tokens_per_s, result.decode_samples = percentile(rates, 50), len(rates)


def _prefill_rate(wave: Sequence[Record]) -> float | None:
    if not wave:
        return None
    seconds = max(one.arrivals[0][0] for one in wave) - min(one.due for one in wave)
    return sum(one.prompt_tokens for one in wave) / seconds if seconds > 0 else None


def _milliseconds(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    middle, high = percentile(seconds, 50), percentile(seconds, 99)
    return (None, None) if middle is None or high is None else (1e3 * middle, 1e3 * high)


def compare_with_limit(result: RowResult, limit: Limit) -> None:
    """Put the limit into the line, and the fractions reached."""
    result.limit_tokens_per_s, result.limit_note = limit.tokens_per_s, limit.note
    if limit.tokens_per_s is None:
        return
    if result.kind == Kind.prefill.value:
        result.fraction = _ratio(result.prefill_tokens_per_s, limit.tokens_per_s)
        return
    if result.decode_tokens_per_s is not None:
        result.fraction = result.decode_tokens_per_s * result.streams / limit.tokens_per_s
    result.fraction_in_all = _ratio(result.output_tokens_per_s, limit.tokens_per_s)


def compare_contexts(results: Sequence[RowResult]) -> None:
    """Put into each long context's line what it lost against the one stream after 1,024 tokens."""
    streams = [one for one in results if one.streams == 1 and one.kind != Kind.prefill.value]
    contexts = [one for one in streams if one.kind == Kind.context.value]
    base = next((one for one in streams if one.input_tokens == BASELINE_TOKENS), contexts[0] if contexts else None)
    for one in results:
        if base is not None and one.kind == Kind.context.value and one is not base:
            ratio = _ratio(one.decode_tokens_per_s, base.decode_tokens_per_s)
            one.loss = None if ratio is None else 1 - ratio


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
