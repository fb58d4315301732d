"""What a check found: fine, worth knowing, or in the way of a run; the last two say the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from gptoss_dist.errors import GptOssDistError


class Level(Enum):
    """How bad it is; the value is what is printed."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    about: str
    """What was looked at, in a word."""
    text: str
    way_out: str = ""


def ok(about: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.ok, about, text)


def warning(about: str, text: str, way_out: str) -> Finding:
    """A run works, but slower or otherwise than one might think."""
    return Finding(Level.warning, about, text, way_out)


def error(about: str, text: str, way_out: str) -> Finding:
    """The run that was described would fail."""
    return Finding(Level.error, about, text, way_out)


def check(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds; what the program itself would refuse is an error, its message the way out."""
    try:
        yield from look()
    except GptOssDistError as refusal:
        text = " ".join(str(refusal).split())
        yield Finding(Level.error, about, text)
