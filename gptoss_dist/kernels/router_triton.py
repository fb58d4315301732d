"""The router in Triton. The reference is `router_reference`.

Few tokens: one launch. The router's weights are too many bytes for one SM to fetch quickly, so every program takes a
few experts and all tokens and leaves its logits in a scratch tensor; the program that arrives last, by a counter on the
device, chooses for all tokens and sets the counter back to zero. The alternative, choosing inside the consumer, would
repeat the choice in each of its programs. The norm before the router fits in: each program repeats it.

Some tokens: tensor cores, the columns dealt over programs too, so that no program has many bytes to fetch; a second
launch adds the parts in their order and chooses. Many tokens: a matrix product by torch, then a launch that chooses.

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

FEW_TOKENS = 8
"""Up to here one fused launch; a power of two, and a candidate, to be set by measurement."""
SOME_TOKENS = 64
"""Up to here the product over parts of the columns; a power of two, and a candidate as well."""
_ROWS = 4
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
    index_TK, weight_TK = _outputs(tokens, top_k, normed_TH.device)
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
    index_TK, weight_TK = _outputs(tokens, top_k, residual_TH.device)
    normed_TH = torch.empty(residual_TH.shape, dtype=residual_TH.dtype, device=residual_TH.device)
    _route_few(residual_TH, weight_EH, bias_E, index_TK, weight_TK, norm_H, normed_TH, epsilon)
    return normed_TH, index_TK, weight_TK


def choose(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `router_reference.choose`."""
    tokens, experts = logits_TE.shape
    index_TK, weight_TK = _outputs(tokens, top_k, logits_TE.device)
    if tokens:
        assert logits_TE.is_contiguous()
        _launch_choice(logits_TE, None, 1, index_TK, weight_TK, experts)
    return index_TK, weight_TK


def _outputs(tokens: int, top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    index_TK = torch.empty((tokens, top_k), dtype=torch.int32, device=device)
    return index_TK, torch.empty((tokens, top_k), dtype=torch.float32, device=device)


def _launch_choice(
    logits: torch.Tensor,
    bias_E: torch.Tensor | None,
    parts: int,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    experts: int,
) -> None:
    """Choose by logits [T, E], or by float32 parts [parts, T, E] of them that are still to be added, with the bias."""
    tokens, top_k = index_TK.shape
    _choose_kernel[(blocks_of(tokens, _ROWS),)](
        logits,
        logits if bias_E is None else bias_E,
        index_TK,
        weight_TK,
        tokens,
        PARTS=parts,
        HAS_BIAS=bias_E is not None,
        ROWS=_ROWS,
        num_warps=4,
        **_blocks(experts, top_k),
        **dependent_launch.options(logits.device),
    )


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
    _launch_choice(part_STE, bias_E, parts, index_TK, weight_TK, experts)


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
        **_blocks(experts, index_TK.shape[1]),
        **dependent_launch.options(x_TH.device),
    )


def _blocks(experts: int, top_k: int) -> dict[str, int]:
    return {
        "EXPERTS": experts,
        "TOP_K": top_k,
        "BLOCK_EXPERTS": padded_to_power(experts),
        "BLOCK_K": padded_to_power(top_k),
    }


def _counter(device: torch.device) -> torch.Tensor:
    if device not in _counters:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise KernelError(
                f"the router's first call on {device} is under graph capture: its counter would live in the graph's "
                "memory. Run the step once before capturing it."
            )
        _counters[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[device]


@triton.jit
def _keys(value, expert, EXPERTS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, NARROW: tl.constexpr):
    """Integers that order as (logit, then lowest id first): one maximum finds both.

    int64; NARROW, for logits whose float32 has 13 zeros at the end (float16, bfloat16): int32, with the id there.
    """
    value = tl.where(value == value, value, -float("inf"))  # NaN: some id in range
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # −0 equals 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = BLOCK_EXPERTS - 1 - expert
    if NARROW:
        keys = tl.where(expert < EXPERTS, (ordered & -0x2000) | place, -(2**31))
    else:
        keys = tl.where(expert < EXPERTS, (ordered.to(tl.int64) << 32) | place.to(tl.int64), -(2**63))
    return keys


@triton.jit
def _logit(keys, NARROW: tl.constexpr):
    """The logits, float32, of keys."""
    if NARROW:
        bits = (keys ^ ((keys >> 31) & 0x7FFFFFFF)) & -0x2000
    else:
        ordered = (keys >> 32).to(tl.int32)
        bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _choose(
    logits, bias, index, weight, first, tokens, dtype: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tokens first … first + ROWS − 1: the TOP_K largest logits and the softmax over them. A warp has whole rows."""
    token = (first + tl.arange(0, ROWS))[:, None]
    expert = tl.arange(0, BLOCK_EXPERTS)[None, :]
    place = tl.arange(0, BLOCK_K)[None, :]
    inside = (token < tokens) & (expert < EXPERTS)
    value = tl.load(logits + token * EXPERTS + expert, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        value += tl.load(logits + (part * tokens + token) * EXPERTS + expert, mask=inside, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + expert, mask=expert < EXPERTS, other=0.0).to(tl.float32)
    value = value.to(dtype).to(tl.float32)
    NARROW: tl.constexpr = dtype.primitive_bitwidth == 16 and BLOCK_EXPERTS <= 8192
    LEAST: tl.constexpr = -(2**31) if NARROW else -(2**63)
    keys = _keys(value, expert, EXPERTS, BLOCK_EXPERTS, NARROW)
    chosen = tl.zeros([ROWS, BLOCK_K], dtype=keys.dtype)
    for rank in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1)[:, None]
        keys = tl.where(keys == best, LEAST, keys)
        chosen = tl.where(place == rank, best, chosen)
    value = tl.where(place < TOP_K, _logit(chosen, NARROW), -float("inf"))
    factor = tl.exp(value - tl.max(value, axis=1)[:, None])
    stored = (token < tokens) & (place < TOP_K)
    MASK: tl.constexpr = 0x1FFF if NARROW else 0x7FFFFFFF
    tl.store(index + token * TOP_K + place, BLOCK_EXPERTS - 1 - (chosen.to(tl.int32) & MASK), mask=stored)
    tl.store(weight + token * TOP_K + place, factor / tl.sum(factor, axis=1)[:, None], mask=stored)


@triton.jit(do_not_specialize=["tokens"])
def _choose_kernel(
    logits, bias, index, weight, tokens, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS tokens; logits have the number format of the bias, if there is one, when they are compared."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    _choose(
        logits, bias, index, weight, tl.program_id(0) * ROWS, tokens, bias.dtype.element_ty, PARTS, HAS_BIAS,
        EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K,
    )  # fmt: skip


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
            _choose(
                logits, bias, index, weight, 0, tokens, logits.dtype.element_ty, 1, False,
                EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K,
            )  # fmt: skip
            tl.store(counter, 0)
