"""How large a regular expression becomes when its counted repetitions are written out.

`(a{1000}){1000}` is fifteen characters and a million states: llguidance works on such a pattern for minutes, within its
own limits, so the size is bounded before it sees the pattern.
"""

from __future__ import annotations

import re

_COUNTED = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_NAMED_ESCAPE = re.compile(r"\\[pPxu]\{[^}]*\}")
_LARGEST = 10**12  # sizes beyond are all the same to the caller


def expanded_size(pattern: str) -> int:
    """Atoms (characters, classes) of `pattern` after every `{m,n}` is written out; an estimate for a malformed one."""
    groups = [[0, 0]]  # of each open group: the atoms before the latest one, and the latest one's own
    at = 0
    while at < len(pattern):
        counted = _COUNTED.match(pattern, at)
        if counted:
            groups[-1][1] = min(groups[-1][1] * _most(counted), _LARGEST)
            at = counted.end()
        elif pattern[at] == "(":
            groups.append([0, 0])
            at += 1
        elif pattern[at] == ")" and len(groups) > 1:
            inner = sum(groups.pop())
            _append(groups[-1], inner)
            at += 1
        elif pattern[at] in "*+?":
            at += 1
        else:
            _append(groups[-1], 1)
            at = _after_atom(pattern, at)
    return sum(map(sum, groups))


def _append(group: list[int], atom: int) -> None:
    group[:] = min(sum(group), _LARGEST), atom


def _most(counted: re.Match[str]) -> int:
    """The larger bound; `{m,}` is m copies and a loop."""
    low, comma, high = counted.groups()
    most = high if comma and high else low
    return max(int(most), 1) if len(most) < 12 else _LARGEST


def _after_atom(pattern: str, at: int) -> int:
    """Where the atom that begins at `at` ends: an escape, a class, or one character."""
    if pattern[at] == "\\":
        named = _NAMED_ESCAPE.match(pattern, at)
        return named.end() if named else at + 2
    return _after_class(pattern, at) if pattern[at] == "[" else at + 1


def _after_class(pattern: str, at: int) -> int:
    """Where the character class that opens at `at` ends; classes can stand in classes."""
    depth, start = 0, at
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]" and pattern[start:at] not in ("[", "[^"):
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return at
