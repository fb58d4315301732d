"""Finds `wgmma` operands in registers that are written again while the tensor core may still read them.

A `wgmma` runs on after the instruction; its registers are free only behind a wait that covers it. Neither Triton 3.6
(which lets products of the last step run into the next) nor ptxas before 13.3 (which reuses such registers) sees to
that, and results are then wrong now and then. So this reads the machine code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE = re.compile(r"^(?P<label>\.L\w+):|/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]+?)\s*;", re.MULTILINE)
_PRODUCT = re.compile(r"^HGMMA\S* R\d+, R(\d+),")
_WAIT = re.compile(r"^WARPGROUP\.DEPBAR\.LE gsb0, (\w+)")
_JUMP = re.compile(r"^(?:@\S+\s+)?BRA\S* .*`\((\.L\w+)\)")
_GUARD = re.compile(r"^@\S+\s+")
_TARGET = re.compile(r"^(?:U?P\w+, )*R(\d+)\b")
_NO_RESULT = ("HGMMA", "ST", "LDGSTS", "RED", "BAR", "BRA", "EXIT", "WARP", "DEPBAR", "LDGDEPBAR", "ISETP", "R2UR")


def overwritten_operands(disassembly: str) -> list[str]:
    """One line for each product whose operand may be overwritten; `disassembly` is what `nvdisasm -c` prints."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for found in _LINE.finditer(disassembly):
        if found["label"]:
            labels[found["label"]] = len(lines)
        else:
            lines.append(found["text"])
    problems = []
    for at, text in enumerate(lines):
        product = _PRODUCT.match(text)
        if product:
            operand = set(range(int(product[1]), int(product[1]) + 4))
            writer = next((line for line in _unwaited(lines, labels, at) if _written(line) & operand), None)
            if writer is not None:
                problems.append(f"{text}: overwritten by {writer}")
    return problems


def _unwaited(lines: list[str], labels: dict[str, int], product: int) -> Iterator[str]:
    """All instructions that can run after `product` with no wait for it in between."""
    # Groups committed since: -1 until the product's own, which the first instruction with gsb0 ends, itself maybe.
    todo = [(product + 1, 0 if "gsb0" in lines[product] else -1)]
    seen = set()
    while todo:
        at, groups = todo.pop()
        if (at, groups) in seen or at >= len(lines):
            continue
        seen.add((at, groups))
        line = lines[at]
        wait, jump = _WAIT.match(line), _JUMP.match(line)
        if wait and groups >= int(wait[1], 16):
            continue
        yield line
        if line.startswith("HGMMA") and "gsb0" in line:
            groups = min(groups + 1, 16)
        if jump:
            todo.append((labels[jump[1]], groups))
        if not (line.startswith(("BRA", "EXIT"))):
            todo.append((at + 1, groups))


def _written(line: str) -> set[int]:
    """The registers that an instruction writes."""
    name, _, rest = _GUARD.sub("", line).partition(" ")
    target = _TARGET.match(rest.strip())
    if name.startswith(_NO_RESULT) or not target:
        return set()
    count = 4 if ".128" in name or name.endswith(".M88.4") else 2 if ".64" in name or ".WIDE" in name else 1
    return set(range(int(target[1]), int(target[1]) + count))
