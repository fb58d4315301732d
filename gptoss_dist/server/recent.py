"""Speeds and latencies of the last seconds, from how the counters of `/metrics` have grown.

The counters are read when somebody looks, at most twice a second, however many look; nothing is kept running.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SPEED_S = 5.0
"""Speeds are means over this long."""
LATENCY_S = 60.0
"""Latencies are those of the requests and tokens of this long."""
_APART_S = 0.5
_COUNTERS = ("gptoss_prompt_tokens_total", "gptoss_generation_tokens_total")
_HISTOGRAMS = ("gptoss_time_to_first_token_seconds", "gptoss_inter_token_seconds")

Buckets = Mapping[float, float]
"""How many observations are at most the key, in seconds; the last key is infinity."""


@dataclass(frozen=True)
class Latency:
    """In seconds; None where there were none. Exact to a bucket of the histogram."""

    p50: float | None
    p99: float | None
    count: int


@dataclass(frozen=True)
class Rates:
    """Tokens a second (None before two readings) and latencies."""

    prompt: float | None
    generated: float | None
    first_token: Latency
    inter_token: Latency


@dataclass(frozen=True)
class _Reading:
    at: float
    counters: Mapping[str, float]
    histograms: Mapping[str, Buckets]


class Recent:
    """Readings of the last minute."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        """`read` gives the metrics in Prometheus' text format."""
        self._read = read
        self._readings: deque[_Reading] = deque()

    def look(self, now: float) -> Rates:
        """Speeds and latencies up to `now`, in seconds of a clock that never goes back."""
        readings = self._readings
        if not readings or now - readings[-1].at >= _APART_S:
            readings.append(_reading(self._read().decode(), now))
            while now - readings[0].at > LATENCY_S:
                readings.popleft()
        last, first = readings[-1], readings[0]
        since = next(one for one in readings if last.at - one.at <= SPEED_S)
        prompt, generated = (_speed(since, last, name) for name in _COUNTERS)
        first_token, inter_token = (
            _latency(first.histograms.get(name, {}), last.histograms.get(name, {})) for name in _HISTOGRAMS
        )
        return Rates(prompt, generated, first_token, inter_token)


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Where `share` of the observations lie below: linear within a bucket, as Prometheus' histogram_quantile does it.

    `buckets`: upper bounds, rising to infinity, each with the count of all observations up to it. Beyond the last
    finite bound that bound is given. None without observations.
    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank, low, below = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * ((rank - below) / (count - below))
        low, below = bound, count
    return low


def _reading(text: str, at: float) -> _Reading:
    counters: dict[str, float] = {}
    histograms: dict[str, dict[float, float]] = {name: {} for name in _HISTOGRAMS}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _COUNTERS:
                counters[sample.name] = sample.value
            elif family.name in histograms and sample.name == f"{family.name}_bucket":
                histograms[family.name][float(sample.labels["le"])] = sample.value
    return _Reading(at, counters, histograms)


def _speed(since: _Reading, last: _Reading, name: str) -> float | None:
    if last.at <= since.at:
        return None
    return (last.counters.get(name, 0.0) - since.counters.get(name, 0.0)) / (last.at - since.at)


def _latency(before: Buckets, after: Buckets) -> Latency:
    grown = [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    return Latency(quantile(grown, 0.5), quantile(grown, 0.99), int(grown[-1][1]) if grown else 0)
