"""What a batch came to, counted from its lines."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from typing import Any

from gptoss_dist.bench.statistics import percentile

_PERCENTS = (50, 90, 99)


class Tally:
    """Counts lines; keeps eight bytes of each for the percentiles."""

    def __init__(self) -> None:
        """Nothing is counted."""
        self.begun = time.monotonic()
        self.records = self.answered = 0
        self.errors: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.prompt_tokens = self.output_tokens = self.reasoning_tokens = 0
        self.generated = 0
        """Tokens that have come from the engine, those of unfinished answers too."""
        self._seconds = array("d")
        self._lengths = array("q")

    def tokens(self, count: int) -> None:
        """Tokens that came."""
        self.generated += count

    def line(self, content: dict[str, Any], seconds: float | None = None) -> None:
        """A line of output; `seconds` from its first request to its last token."""
        self.records += 1
        if content["error"] is not None:
            self.errors[str(content["error"]["code"])] += 1
            return
        self.answered += 1
        body = content["response"]["body"]
        usage = body.get("usage") or {}
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        output = usage.get("completion_tokens", usage.get("output_tokens", 0))
        details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        self.prompt_tokens += prompt
        self.output_tokens += output
        self.reasoning_tokens += details.get("reasoning_tokens", 0)
        self.finish_reasons.update(_finish_reasons(body))
        self._lengths.append(output)
        if seconds is not None:
            self._seconds.append(seconds)

    def content(self) -> dict[str, Any]:
        """For JSON."""
        wall = time.monotonic() - self.begun
        return {
            "records": self.records,
            "answered": self.answered,
            "errors": dict(self.errors),
            "finish_reasons": dict(self.finish_reasons),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "seconds": round(wall, 3),
            "tokens_per_s": round(self.generated / wall, 2) if wall > 0 and self.generated else None,
            "latency_s": _percentiles(self._seconds),
            "output_length": _percentiles(self._lengths),
        }


def text_of(content: dict[str, Any]) -> str:
    """The summary for a person."""
    errors = ", ".join(f"{count} {code}" for code, count in sorted(content["errors"].items()))
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(content["finish_reasons"].items()))
    rate = f", {content['tokens_per_s']:,.1f} tokens/s" if content["tokens_per_s"] else ""
    lines = [
        f"answered     {content['answered']:,} of {content['records']:,} records in {content['seconds']:,.1f} s{rate}",
        f"errors       {errors or 'none'}",
        f"ended by     {ends or 'nothing'}",
        f"tokens       {content['prompt_tokens']:,} in prompts, {content['output_tokens']:,} in answers, "
        f"{content['reasoning_tokens']:,} of these reasoning",
    ]
    if "left" in content:
        lines.append(f"left         {content['left']:,} records, for other processes or for the next start")
    for name, counts in content.get("functions", {}).items():
        lines.append(f"{'called':12s} {name} {counts['calls']:,} times, {counts['failed']:,} of them failed")
    for name, label, unit in (("latency_s", "latency", " s"), ("output_length", "length", " tokens")):
        values = content[name]
        if values is not None:
            lines.append(f"{label:12s} " + ", ".join(f"{key} {value:,.4g}{unit}" for key, value in values.items()))
    return "\n".join(lines)


def _finish_reasons(body: dict[str, Any]) -> list[str]:
    """Of each choice of a chat completion; the status of a response."""
    return [str(one["finish_reason"]) for one in body["choices"]] if "choices" in body else [str(body.get("status"))]


def _percentiles(values: array[Any]) -> dict[str, float] | None:
    ordered = sorted(values)
    found = {f"p{percent}": percentile(ordered, percent) for percent in _PERCENTS}
    return {name: round(value, 4) for name, value in found.items() if value is not None} or None
