"""What all ranks found, as one list: said once, with the ranks or machines that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_dist.doctor.finding import Finding, Level

_WIDTHS = (8, 13)


@dataclass(frozen=True)
class Line:
    """A finding, and who found it; empty: all who looked."""

    finding: Finding
    ranks: tuple[int, ...] = ()


def merge(found: Sequence[Sequence[Finding]]) -> list[Line]:
    """Findings by rank as lines, in the order in which the first rank that has them found them."""
    ranks: dict[Finding, list[int]] = {}
    lookers: dict[str, set[int]] = {}
    for rank, findings in enumerate(found):
        for finding in findings:
            ranks.setdefault(finding, []).append(rank)
            lookers.setdefault(finding.about, set()).add(rank)
    everybody = {finding: len(set(those)) == len(lookers[finding.about]) for finding, those in ranks.items()}
    return [Line(finding, () if everybody[finding] else tuple(those)) for finding, those in ranks.items()]


def text_of(lines: Sequence[Line]) -> str:
    """The report for people: a line each, the way out below what needs one, and a count at the end."""
    printed = []
    for line in lines:
        level, about = line.finding.level.value, line.finding.about
        ranks = f" (rank {', '.join(map(str, line.ranks))})" if line.ranks else ""
        printed.append(f"{level:{_WIDTHS[0]}} {about:{_WIDTHS[1]}} {line.finding.text}{ranks}")
        if line.finding.way_out:
            printed.append(f"{'':{sum(_WIDTHS) + 1}} → {line.finding.way_out}")
    return "\n".join([*printed, summary(lines)])


def as_json(lines: Sequence[Line]) -> dict[str, Any]:
    """The report for programs."""
    findings = [
        {
            "level": line.finding.level.value,
            "about": line.finding.about,
            "text": line.finding.text,
            "way_out": line.finding.way_out,
            "ranks": list(line.ranks),
        }
        for line in lines
    ]
    return {"healthy": not errors(lines), "findings": findings}


def summary(lines: Sequence[Line]) -> str:
    """How many errors and warnings there are."""
    warnings = sum(line.finding.level is Level.warning for line in lines)
    return f"{_count(errors(lines), 'error')}, {_count(warnings, 'warning')}"


def errors(lines: Sequence[Line]) -> int:
    """How many lines are in the way of a run."""
    return sum(line.finding.level is Level.error for line in lines)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'s' * (number != 1)}"
