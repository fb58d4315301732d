"""The router in Triton. The reference is `router_reference`.

Few tokens: one launch. The router's weights are too many bytes for one SM to fetch quickly, so every program takes a
few experts and all tokens and leaves its logits in a scratch tensor; the program that arrives last, by a counter on the
device, chooses for all tokens and sets the counter back to zero. The alternative, choosing inside the consumer, would
repeat the choice in each of its programs. The norm before the router fits in: each program repeats it.

Some tokens: tensor cores, the columns dealt over programs too, so that no program has many bytes to fetch; a second
launch adds the parts in their order and chooses. Many tokens: a matrix product by torch, then a launch that chooses
(`router_choice_triton`).

The counter is one int32 a device, shared by all calls: calls on one device must follow each other (one stream, or
graphs of one stream), as in a decode step they do. It is made by the first call, which must not be under capture.

Shape legend: T tokens, H hidden, E experts, K experts per token.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.norm_triton import add_norm, normed_tile
from gptoss_dist.kernels.projection_triton import few_product
from gptoss_dist.kernels.router_choice_triton import (
    choice_constants,
    choose,
    choose_rows,
    empty_choice,
    launch_choice,
)

FEW_TOKENS = 8
"""Up to here one fused launch; a power of two. NOTES.md has what each way takes at 1, 8 and 64 tokens."""
SOME_TOKENS = 64
"""Up to here the product over parts of the columns; a power of two."""
_PARTS = 8
"""Of the columns, where they can be cut into so many of whole 16-byte pieces."""
_PART_TILE = {"ROWS": 16, "SLICES": 4, "STEP": 32}
_EXPERTS_A_PROGRAM = 2
_counters: dict[torch.device, torch.Tensor] = {}


def route(
    normed_TH: torch.Tensor, weight_EH: torch.Tensor, bias_E: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `router_reference.route`. Raises KernelError when the first call on a device is under capture."""
    tokens = normed_TH.shape[0]
    if tokens > SOME_TOKENS:
        return choose(torch.nn.functional.linear(normed_TH, weight_EH, bias_E), top_k)
    index_TK, weight_TK = empty_choice(tokens, top_k, normed_TH.device)
    if tokens > FEW_TOKENS:
        _route_some(normed_TH, weight_EH, bias_E, index_TK, weight_TK)
    elif tokens:
        _route_few(normed_TH, weight_EH, bias_E, index_TK, weight_TK)
    return index_TK, weight_TK


def norm_route(
    residual_TH: torch.Tensor,
    norm_H: torch.Tensor,
    epsilon: float,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `router_reference.norm_route`; KernelError as `route`."""
    tokens = residual_TH.shape[0]
    if not 0 < tokens <= FEW_TOKENS:
        normed_TH = add_norm(residual_TH, None, norm_H, epsilon)
        return normed_TH, *route(normed_TH, weight_EH, bias_E, top_k)
    index_TK, weight_TK = empty_choice(tokens, top_k, residual_TH.device)
    normed_TH = torch.empty(residual_TH.shape, dtype=residual_TH.dtype, device=residual_TH.device)
    _route_few(residual_TH, weight_EH, bias_E, index_TK, weight_TK, norm_H, normed_TH, epsilon)
    return normed_TH, index_TK, weight_TK


def _route_some(
    normed_TH: torch.Tensor,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> None:
    (tokens, hidden), experts = normed_TH.shape, weight_EH.shape[0]
    assert normed_TH.stride(1) == weight_EH.stride(1) == bias_E.stride(0) == 1
    parts = _PARTS if hidden % (_PARTS * 8) == 0 else 1
    part_STE = torch.empty((parts, tokens, experts), dtype=torch.float32, device=normed_TH.device)
    _part_kernel[(blocks_of(experts, _PART_TILE["ROWS"]), parts)](
        normed_TH,
        weight_EH,
        part_STE,
        tokens,
        normed_TH.stride(0),
        weight_EH.stride(0),
        EXPERTS=experts,
        COLUMNS=hidden // parts,
        TOKENS=max(16, padded_to_power(tokens)),
        num_warps=4,
        num_stages=3,
        **_PART_TILE,
        **dependent_launch.options(normed_TH.device),
    )
    launch_choice(part_STE, bias_E, parts, index_TK, weight_TK, experts)


def _route_few(
    x_TH: torch.Tensor,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    norm_H: torch.Tensor | None = None,
    normed_TH: torch.Tensor | None = None,
    epsilon: float = 0.0,
) -> None:
    """With `norm_H`, x is the residual and its norm goes to `normed_TH`."""
    (tokens, hidden), experts = x_TH.shape, weight_EH.shape[0]
    assert x_TH.stride(1) == weight_EH.stride(1) == bias_E.stride(0) == 1
    logits_TE = torch.empty((tokens, experts), dtype=x_TH.dtype, device=x_TH.device)
    programs = blocks_of(experts, _EXPERTS_A_PROGRAM) + (norm_H is not None)
    _route_few_kernel[(programs,)](
        x_TH,
        weight_EH,
        bias_E,
        x_TH if norm_H is None else norm_H,
        x_TH if normed_TH is None else normed_TH,
        logits_TE,
        index_TK,
        weight_TK,
        _counter(x_TH.device),
        tokens,
        x_TH.stride(0),
        weight_EH.stride(0),
        epsilon,
        HAS_NORM=norm_H is not None,
        HIDDEN=hidden,
        ROWS=FEW_TOKENS,
        BLOCK_HIDDEN=padded_to_power(hidden),
        EXPERTS_A_PROGRAM=_EXPERTS_A_PROGRAM,
        num_warps=4,
        **choice_constants(experts, index_TK.shape[1]),
        **dependent_launch.options(x_TH.device),
    )


def _counter(device: torch.device) -> torch.Tensor:
    if device not in _counters:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise KernelError(
                f"the router's first call on {device} is under graph capture: its counter would live in the graph's "
                "memory. Run the step once before capturing it."
            )
        _counters[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[device]


@triton.jit(do_not_specialize=["tokens"])
def _part_kernel(
    normed, router, part, tokens, normed_stride, router_stride,
    EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, SLICES: tl.constexpr,
    STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS experts' logits of all tokens, over one part of the columns."""
    expert = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    number = tl.program_id(1)
    value = few_product(
        normed + number * COLUMNS, router + number * COLUMNS, expert, expert < EXPERTS, tokens, normed_stride,
        router_stride, COLUMNS, ROWS, TOKENS, SLICES, STEP, DEPENDENT,
    )  # fmt: skip
    place = part + (number * tokens + token)[None, :] * EXPERTS + expert[:, None]
    tl.store(place, value, mask=(expert < EXPERTS)[:, None] & (token < tokens)[None, :])


@triton.jit
def _route_few_kernel(
    x, router, bias, norm, normed, logits, index, weight, counter, tokens, x_stride, router_stride, epsilon,
    HAS_NORM: tl.constexpr, HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS_A_PROGRAM: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Logits of a few experts for all tokens; the last program to arrive chooses.

    HAS_NORM: one more program, whose experts do not exist, writes the normed rows, so that no choice waits for them.
    """
    deciding = tl.num_programs(0)
    if HAS_NORM:
        deciding -= 1
    expert = tl.program_id(0) * EXPERTS_A_PROGRAM + tl.arange(0, EXPERTS_A_PROGRAM)
    column = tl.arange(0, BLOCK_HIDDEN)[None, :]
    in_row = column < HIDDEN
    inside = (expert < EXPERTS)[:, None] & in_row
    rows = tl.load(router + expert[:, None] * router_stride + column, mask=inside, other=0.0)
    added = tl.load(bias + expert, mask=expert < EXPERTS, other=0.0).to(tl.float32)
    if HAS_NORM:
        norms = tl.load(norm + column, mask=in_row, other=0.0)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    vector = tl.load(x + column, mask=in_row, other=0.0)
    for token in range(tokens):
        # One token ahead: the way to memory is longer than the work on a token.
        following = tl.load(x + (token + 1) * x_stride + column, mask=in_row & (token + 1 < tokens), other=0.0)
        if HAS_NORM:
            vector = normed_tile(vector.to(tl.float32), norms, epsilon, HIDDEN).to(vector.dtype)
            if tl.program_id(0) == deciding:
                tl.store(normed + token * HIDDEN + column, vector, mask=in_row)
        value = tl.sum(rows.to(tl.float32) * vector.to(tl.float32), axis=1) + added
        tl.store(logits + token * EXPERTS + expert, value.to(logits.dtype.element_ty), mask=expert < EXPERTS)
        vector = following
    # All threads' logits are stored, then one thread announces them (release); the last one sees all others' (acquire).
    if tl.program_id(0) < deciding:
        tl.debug_barrier()
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived == deciding - 1:
            choose_rows(
                logits, bias, index, weight, 0, tokens, logits.dtype.element_ty, 1, False,
                EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K,
            )  # fmt: skip
            tl.store(counter, 0)
