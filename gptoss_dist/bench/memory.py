"""Whether memory grows over a long run: samples every few seconds, and the line through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gptoss_dist.bench.machine import gpu_bytes, resident_bytes

NOISE_BYTES = 64e6
"""Growth up to this over the whole run is not judged: allocators round, and libraries load parts of themselves late."""
_SETTLING = 1 / 3
"""Share of the run in which buffers may still grow to their sizes."""


@dataclass(frozen=True)
class Sample:
    """Memory of one rank at one time, in bytes; None where it cannot be known."""

    time: float
    process: int | None
    gpu: int | None


@dataclass
class Sampler:
    """Call it after every step: it takes a sample, and does `also`, once in `every_s` seconds; `close` takes the last.

    So there are samples of the first step and of the end, however slow the steps are.
    """

    every_s: float
    also: Callable[[], None]
    samples: list[Sample] = field(default_factory=list)
    _next: float = 0.0

    def __call__(self) -> None:
        """Look at the clock."""
        if (now := time.perf_counter()) >= self._next:
            self._take(now)

    def close(self) -> None:
        """The last step was done: take a sample, unless the last one is of about now."""
        if (now := time.perf_counter()) >= self._next - self.every_s / 2:
            self._take(now)

    def _take(self, now: float) -> None:
        self._next = now + self.every_s
        self.also()
        self.samples.append(Sample(now, resident_bytes(), gpu_bytes()))


@dataclass(frozen=True)
class Drift:
    """Memory of one kind on one rank over a run."""

    rank: int
    kind: str
    first_mb: float
    last_mb: float
    mb_per_min: float | None
    """Slope of the least-squares line through the samples after the first third of the run; None of fewer than two."""
    grows: bool
    """Whether the slope and the whole growth are above what is allowed."""

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through the points; 0 of fewer than two different times."""
    if not points:
        return 0.0
    middle_x, middle_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    square = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / square if square else 0.0


def drifts(rank: int, samples: Sequence[Sample], allowed_mb_per_min: float) -> list[Drift]:
    """Of the process and of the GPU of one rank, where this machine tells their memory."""
    found = []
    for kind in ("process", "gpu"):
        points = [(one.time, float(value)) for one in samples if (value := getattr(one, kind)) is not None]
        settled = [point for point in points if point[0] >= points[0][0] + _SETTLING * (points[-1][0] - points[0][0])]
        if len(settled) < 2:
            if points:
                found.append(Drift(rank, kind, points[0][1] / 1e6, points[-1][1] / 1e6, None, grows=False))
            continue
        rate = slope(settled) * 60 / 1e6
        first, last = settled[0][1], settled[-1][1]
        grows = rate > allowed_mb_per_min and slope(settled) * (settled[-1][0] - settled[0][0]) > NOISE_BYTES
        found.append(Drift(rank, kind, first / 1e6, last / 1e6, rate, grows))
    return found
