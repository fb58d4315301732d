"""SLURM's short spellings of lists, written out."""

from __future__ import annotations

import itertools
import re

from gptoss_dist.errors import ConfigError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_nodelist(text: str) -> list[str]:
    """The host names in a SLURM node list: `node[01-03,7],gpu5` is node01, node02, node03, node7, gpu5.

    Several brackets in one name multiply, the last one counting fastest, and leading zeros are kept, as in
    `scontrol show hostnames`. Raises ConfigError when the text is no node list.
    """
    return [host for part in _split_outside_brackets(text) for host in _expand_name(part, text)]


def expand_task_counts(text: str) -> list[int]:
    """The tasks of each node from SLURM's `2(x3),1`: 2, 2, 2, 1. Raises ConfigError when the text is something else."""
    counts: list[int] = []
    for part in text.split(","):
        match = _REPEATED.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"'{text}' is no list of tasks per node; SLURM writes one like 2(x3),1")
        counts.extend([int(match[1])] * int(match[2] or 1))
    return counts


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text.strip():
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise _no_nodelist(text)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth != 0 or not all(parts):
        raise _no_nodelist(text)
    return parts


def _expand_name(name: str, text: str) -> list[str]:
    pieces = re.split(r"\[([^\]]*)\]", name)  # odd positions are what stood in brackets
    choices = [_expand_ranges(piece, text) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _no_nodelist(text)
        first, last = match[1], match[2] or match[1]
        numbers.extend(str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return numbers


def _no_nodelist(text: str) -> ConfigError:
    return ConfigError(f"'{text}' is no SLURM node list; one looks like node[1-3,7],gpu05")
