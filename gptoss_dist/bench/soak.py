"""A soak: mixed lengths and cancellations for a long time, and whether memory, pages and ranks stay in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_dist.bench.memory import Drift
from gptoss_dist.engine.request import Finish
from gptoss_dist.schema.job.bench import BenchConf


@dataclass(frozen=True)
class Lengths:
    """Of one request, in tokens; `cancel_after` tokens of output it is cancelled, if not None."""

    prompt: int
    output: int
    cancel_after: int | None


def lengths(job: BenchConf, number: int) -> Lengths:
    """Of request `number`: anything up to the job's lengths, the same for the same seed."""
    generator = random.Random(f"soak {job.seed} {number}")
    prompt, output = generator.randint(1, job.input_tokens), generator.randint(1, job.output_tokens)
    cancelled = generator.random() < job.cancel_share and output > 1
    return Lengths(prompt, output, generator.randint(1, output - 1) if cancelled else None)


@dataclass
class Tally:
    """Counts what happens, and keeps nothing: a list of all tokens would itself be memory that grows."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    output_tokens: int = 0
    wrong: int = 0
    """Requests that finished with another number of tokens than they were asked for."""
    last_s: float = 0.0
    _missing: dict[int, int] = field(default_factory=dict)

    def sent(self, number: int, due: float, prompt_tokens: int, wanted_tokens: int) -> None:  # noqa: ARG002
        """See `Listener.sent`."""
        self.requests += 1
        self._missing[number] = wanted_tokens

    def tokens(self, number: int, time: float, count: int) -> None:
        """See `Listener.tokens`."""
        self.output_tokens += count
        self.last_s = time
        self._missing[number] -= count

    def ended(self, number: int, finish: Finish) -> None:
        """See `Listener.ended`."""
        finished = finish is not Finish.cancelled
        missing = self._missing.pop(number)
        self.finished += finished
        self.cancelled += not finished
        self.wrong += finished and missing != 0


def report(tally: Tally, found: Sequence[Drift], checks: int, preemptions: int, whole: bool) -> dict[str, Any]:
    """The soak's part of the JSON."""
    return {
        "status": "done" if whole else "partial",
        "seconds": round(tally.last_s, 3),
        "requests": tally.requests,
        "finished": tally.finished,
        "cancelled": tally.cancelled,
        "wrong_lengths": tally.wrong,
        "output_tokens": tally.output_tokens,
        "output_tokens_per_s": round(tally.output_tokens / tally.last_s, 2) if tally.last_s else None,
        "page_checks": checks,
        "preemptions": preemptions,
        "memory": [one.content() for one in found],
    }


def render_soak(content: dict[str, Any]) -> str:
    """The soak's numbers for people."""
    lines = [
        f"soak, {content['status']}: {content['seconds']:.0f} s, {content['requests']} requests, "
        f"{content['finished']} finished, {content['cancelled']} cancelled, {content['output_tokens']} tokens "
        f"({content['output_tokens_per_s'] or 0:.0f} a second); "
        f"{content['preemptions']} preempted, pages checked {content['page_checks']} times on rank 0"
    ]
    lines += [
        f"rank {one['rank']}, memory of the {one['kind']}: {one['first_mb']:.0f} MB, then {one['last_mb']:.0f} MB, "
        + _growth(one)
        for one in content["memory"]
    ]
    if not content["memory"]:
        lines.append("memory: this machine tells none, neither of processes nor of GPUs")
    return "\n".join(lines)


def _growth(one: dict[str, Any]) -> str:
    if one["mb_per_min"] is None:
        return "too few samples to tell growth: a longer job.soak_s, or a smaller job.sample_s"
    return f"{one['mb_per_min']:+.1f} MB a minute{', GROWS' if one['grows'] else ''}"


def problems(content: dict[str, Any], job: BenchConf) -> list[str]:
    """What makes the soak fail; empty if all was well."""
    found = [
        f"memory of the {one['kind']} on rank {one['rank']} grows by {one['mb_per_min']:.1f} MB a minute, and "
        f"job.growth_mb_per_min={job.growth_mb_per_min:g} is allowed"
        for one in content["memory"]
        if one["grows"]
    ]
    if content["wrong_lengths"]:
        found.append(f"{content['wrong_lengths']} requests finished with another number of tokens than asked for")
    return found
