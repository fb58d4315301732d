"""What `/metrics` shows, and what of it is counted as requests come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)


@dataclass
class _Clock:
    """When a request was queued, and when its last token came; seconds of the monotonic clock."""

    queued: float
    last: float | None = None


@dataclass(frozen=True)
class Gauge:
    """A number that is read when it is asked for; `values` by the values of `labels`."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """All zero."""
        self._registry = registry = CollectorRegistry()
        self._http = Counter("gptoss_http_requests", "HTTP requests.", ("path", "status"), registry=registry)
        self._finished = Counter(
            "gptoss_requests", "Requests of the engine that ended.", ("finish",), registry=registry
        )
        self._prompt = Counter("gptoss_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._generated = Counter("gptoss_generation_tokens", "Tokens generated.", registry=registry)
        self._first = Histogram(
            "gptoss_time_to_first_token_seconds",
            "From queueing to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "gptoss_inter_token_seconds", "Between two tokens of a request.", buckets=_BETWEEN, registry=registry
        )
        self._whole = Histogram(
            "gptoss_request_seconds", "From queueing to the end.", buckets=_SECONDS, registry=registry
        )
        self._clocks: dict[str, _Clock] = {}

    def show_gauges(self, read: Callable[[], Iterable[Gauge]]) -> None:
        """Ask `read` for the present state whenever the metrics are shown."""
        self._registry.register(_Gauges(read))

    def answered(self, path: str, status: int) -> None:
        """An HTTP request was answered."""
        self._http.labels(path, str(status)).inc()

    def submitted(self, request_id: str, prompt_tokens: int, now: float) -> None:
        """A request was queued."""
        self._clocks[request_id] = _Clock(now)
        self._prompt.inc(prompt_tokens)

    def generated(self, request_id: str, tokens: int, now: float) -> None:
        """A request got tokens; those that come together share the time since the last ones."""
        self._generated.inc(tokens)
        clock = self._clocks.get(request_id)
        if clock is None:
            return
        if clock.last is None:
            self._first.observe(now - clock.queued)
        else:
            for _ in range(tokens):
                self._between.observe((now - clock.last) / tokens)
        clock.last = now

    def finished(self, request_id: str, reason: str, now: float) -> None:
        """A request ended: stop, length or cancelled."""
        self._finished.labels(reason).inc()
        clock = self._clocks.pop(request_id, None)
        if clock is not None:
            self._whole.observe(now - clock.queued)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, read: Callable[[], Iterable[Gauge]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        for gauge in self._read():
            family = GaugeMetricFamily(gauge.name, gauge.meaning, labels=gauge.labels)
            for labels, value in gauge.values.items():
                family.add_metric(labels, value)
            yield family
