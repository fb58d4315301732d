"""The router in Triton. The reference is `router_reference`.

Few tokens: one launch. The router's weights are too many bytes for one SM to fetch quickly, so every program takes a
few experts and all tokens and leaves its logits in a scratch tensor; the program that arrives last, by a counter on the
device, chooses for all tokens and sets the counter back to zero. The alternative, choosing inside the consumer, would
repeat the choice in each of its programs. Many tokens: a matrix product by torch, then a launch that chooses.

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

FEW_TOKENS = 8
"""Up to here one fused launch; a power of two, and a candidate, to be set by measurement."""
_ROWS = 4
_EXPERTS_A_PROGRAM = 2
_counters: dict[torch.device, torch.Tensor] = {}


def route(
    normed_TH: torch.Tensor, weight_EH: torch.Tensor, bias_E: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `router_reference.route`. Raises KernelError when the first call on a device is under capture."""
    tokens = normed_TH.shape[0]
    if tokens > FEW_TOKENS:
        return choose(torch.nn.functional.linear(normed_TH, weight_EH, bias_E), top_k)
    index_TK, weight_TK = _outputs(tokens, top_k, normed_TH.device)
    if tokens:
        _route_few(normed_TH, weight_EH, bias_E, index_TK, weight_TK)
    return index_TK, weight_TK


def choose(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `router_reference.choose`."""
    tokens, experts = logits_TE.shape
    index_TK, weight_TK = _outputs(tokens, top_k, logits_TE.device)
    if tokens:
        assert logits_TE.is_contiguous()
        _choose_kernel[(triton.cdiv(tokens, _ROWS),)](
            logits_TE, index_TK, weight_TK, tokens, ROWS=_ROWS, num_warps=4, **_blocks(experts, top_k)
        )
    return index_TK, weight_TK


def _outputs(tokens: int, top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    index_TK = torch.empty((tokens, top_k), dtype=torch.int32, device=device)
    return index_TK, torch.empty((tokens, top_k), dtype=torch.float32, device=device)


def _route_few(
    normed_TH: torch.Tensor,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> None:
    (tokens, hidden), experts = normed_TH.shape, weight_EH.shape[0]
    assert normed_TH.stride(1) == weight_EH.stride(1) == bias_E.stride(0) == 1
    logits_TE = torch.empty((tokens, experts), dtype=normed_TH.dtype, device=normed_TH.device)
    _route_few_kernel[(triton.cdiv(experts, _EXPERTS_A_PROGRAM),)](
        normed_TH,
        weight_EH,
        bias_E,
        logits_TE,
        index_TK,
        weight_TK,
        _counter(normed_TH.device),
        tokens,
        normed_TH.stride(0),
        weight_EH.stride(0),
        HIDDEN=hidden,
        ROWS=FEW_TOKENS,
        BLOCK_HIDDEN=triton.next_power_of_2(hidden),
        EXPERTS_A_PROGRAM=_EXPERTS_A_PROGRAM,
        num_warps=4,
        **_blocks(experts, index_TK.shape[1]),
    )


def _blocks(experts: int, top_k: int) -> dict[str, int]:
    return {
        "EXPERTS": experts,
        "TOP_K": top_k,
        "BLOCK_EXPERTS": triton.next_power_of_2(experts),
        "BLOCK_K": triton.next_power_of_2(top_k),
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
def _keys(value, expert, EXPERTS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr):
    """int64 keys that order as (logit, then lowest id first): one maximum finds both."""
    value = tl.where(value == value, value, -float("inf"))  # NaN: some id in range
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # −0 equals 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (BLOCK_EXPERTS - 1 - expert).to(tl.int64)
    return tl.where(expert < EXPERTS, keys, -(2**63))


@triton.jit
def _choose(
    logits, index, weight, first, tokens,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tokens first … first + ROWS − 1: the TOP_K largest logits and the softmax over them. A warp has whole rows."""
    token = (first + tl.arange(0, ROWS))[:, None]
    expert = tl.arange(0, BLOCK_EXPERTS)[None, :]
    place = tl.arange(0, BLOCK_K)[None, :]
    inside = (token < tokens) & (expert < EXPERTS)
    value = tl.load(logits + token * EXPERTS + expert, mask=inside, other=0.0).to(tl.float32)
    keys = _keys(value, expert, EXPERTS, BLOCK_EXPERTS)
    chosen = tl.zeros([ROWS, BLOCK_K], dtype=tl.int64)
    for rank in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1)[:, None]
        keys = tl.where(keys == best, -(2**63), keys)
        chosen = tl.where(place == rank, best, chosen)
    ordered = (chosen >> 32).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    value = tl.where(place < TOP_K, value, -float("inf"))
    factor = tl.exp(value - tl.max(value, axis=1)[:, None])
    stored = (token < tokens) & (place < TOP_K)
    tl.store(index + token * TOP_K + place, BLOCK_EXPERTS - 1 - chosen.to(tl.int32), mask=stored)
    tl.store(weight + token * TOP_K + place, factor / tl.sum(factor, axis=1)[:, None], mask=stored)


@triton.jit(do_not_specialize=["tokens"])
def _choose_kernel(
    logits, index, weight, tokens,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """ROWS tokens."""
    _choose(logits, index, weight, tl.program_id(0) * ROWS, tokens, EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K)


@triton.jit
def _route_few_kernel(
    normed, router, bias, logits, index, weight, counter, tokens, normed_stride, router_stride,
    HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS_A_PROGRAM: tl.constexpr,
):  # fmt: skip
    """Logits of a few experts for all tokens; the last program chooses."""
    expert = tl.program_id(0) * EXPERTS_A_PROGRAM + tl.arange(0, EXPERTS_A_PROGRAM)
    column = tl.arange(0, BLOCK_HIDDEN)
    inside = (expert < EXPERTS)[:, None] & (column < HIDDEN)[None, :]
    rows = tl.load(router + expert[:, None] * router_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    added = tl.load(bias + expert, mask=expert < EXPERTS, other=0.0).to(tl.float32)
    for token in range(tokens):
        vector = tl.load(normed + token * normed_stride + column, mask=column < HIDDEN, other=0.0).to(tl.float32)
        value = tl.sum(rows * vector[None, :], axis=1) + added
        tl.store(logits + token * EXPERTS + expert, value.to(logits.dtype.element_ty), mask=expert < EXPERTS)
    # All threads' logits are stored, then one thread announces them (release); the last one sees all others' (acquire).
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        _choose(logits, index, weight, 0, tokens, EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K)
        tl.store(counter, 0)
