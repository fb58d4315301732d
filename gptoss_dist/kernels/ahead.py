"""Weights that a later kernel reads, asked into the GPU's L2 cache while memory would rest.

Of a step of few tokens a good part passes between two streams of weights: the first loads of a kernel, its last sums, a
short kernel in between. What is asked for then is found in the cache when its kernel begins. These are hints (PTX ISA,
`prefetch`): nothing waits for them and no result depends on them.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

LINE_BYTES = 128
MOST_BYTES = 32 << 20
"""More would drive out of the cache (50 MB on Hopper) what was asked for, or what is in use."""


def bytes_ahead(weight: torch.Tensor | None) -> int:
    """How much of a contiguous weight is worth asking for; 0 where there is no GPU to ask."""
    if weight is None or weight.device.type != "cuda" or not weight.is_contiguous():
        return 0
    return min(weight.numel() * weight.element_size(), MOST_BYTES)


def options(weight: torch.Tensor | None, programs: int) -> dict[str, int]:
    """The constants of `fetch_share` for a kernel of so many programs along its first axis."""
    lines = bytes_ahead(weight) // LINE_BYTES
    return {"AHEAD_LINES": lines, "AHEAD_SHARE": triton.cdiv(lines, programs)}


@triton.jit
def fetch_into_cache(address):
    """Ask for the 128 bytes around each address (int64) to be brought into the L2 cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def fetch_share(weight, AHEAD_LINES: tl.constexpr, AHEAD_SHARE: tl.constexpr):
    """Ask for this program's share of the lines that begin at `weight`."""
    if AHEAD_LINES > 0:
        SHARE_PADDED: tl.constexpr = triton.next_power_of_2(AHEAD_SHARE)
        line = tl.program_id(0) * AHEAD_SHARE + tl.minimum(tl.arange(0, SHARE_PADDED), AHEAD_SHARE - 1)
        fetch_into_cache(weight.to(tl.int64) + tl.minimum(line, AHEAD_LINES - 1).to(tl.int64) * 128)
