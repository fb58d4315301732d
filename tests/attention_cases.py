"""Random paged caches for the attention kernels, and how far a kernel is from the reference in float64 on them.

    TRITON_INTERPRET=1 python tests/attention_cases.py decode|prefill SEED

runs the small cases on the CPU in Triton's interpreter and prints one line of JSON: the error of each case.

Keys and values are NaN wherever no query may look: other pages, places after the last token, positions before a window.
Table entries before a window are -1 and those after the last page are far outside the cache. Outputs and workspaces are
NaN until a kernel writes them.

Shape legend: T rows of the step, S sequences, N blocks of a table, Q query heads, K key-value heads, D head size,
P pages, B tokens a page.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_dist.kernels.attention_reference import Span, paged_attention

EDGES = tuple((position, 1) for position in (0, 2, 3, 4, 6, 7, 8, 14, 15, 16, -1, 40, 62, 63, 64, 65))
"""Around pages of 4 and 16, windows of 8 and 64, blocks of 16; and a padding row."""
FEW = ((17, 1), (-1, 1), (70, 1))
OURS = ((127, 1), (128, 1), (200, 1), (-1, 1))
UNEVEN = ((5, 1), (150, 1), (-1, 1), (0, 1))


@dataclass(frozen=True)
class Case:
    """Chunks (position of the first token, tokens) of one launch, a decoding sequence being a chunk of one token."""

    name: str
    chunks: tuple[tuple[int, int], ...] = EDGES
    window: int | None = None
    kv_heads: int = 2
    group: int = 8
    head_size: int = 16
    page_size: int = 4
    dtype: str = "float32"
    heads_first: bool = False
    sink: float = 0.0
    setting: tuple[int, ...] = ()
    """Fields of DecodeSetting or PrefillSetting, in order."""


DECODE = (
    *(Case(f"window {window}", window=window) for window in (1, 5, 8, 64)),
    Case("one split", setting=(16, 1, 1, 0)),
    Case("splits of two blocks", kv_heads=1, setting=(16, 1, 1, 8)),
    Case("a split for each block", kv_heads=1, setting=(16, 1, 1, 1000)),
    Case("blocks of a whole page", FEW, page_size=16, setting=(16, 1, 1, 64)),
    Case("blocks of less than a page", FEW, page_size=64, setting=(16, 1, 1, 64)),
    Case("one long sequence among short ones", UNEVEN, kv_heads=1, setting=(16, 1, 1, 4)),
    Case("one long sequence, window", UNEVEN, window=16),
    Case("one key-value head, four query heads", FEW, kv_heads=1, group=4, setting=(16, 1, 1, 16)),
    Case("three query heads a key-value head", FEW, group=3, setting=(16, 1, 1, 64)),
    Case("pages with heads before tokens", FEW, heads_first=True, setting=(16, 1, 1, 64)),
    Case("pages with heads before tokens, window", FEW, window=8, heads_first=True),
    Case("sinks that take nearly all", FEW, sink=20.0, setting=(16, 1, 1, 64)),
    Case("sinks that take nearly all, window", FEW, sink=20.0, window=8),
    Case("sinks that take nearly nothing", FEW, sink=-1e4, setting=(16, 1, 1, 64)),
    Case("float16", FEW, dtype="float16", setting=(16, 1, 1, 64)),
    Case("float16, window", FEW, dtype="float16", window=8),
    Case("heads and settings as in gpt-oss", OURS, None, 1, 8, 64, 16, "float16"),
    Case("heads and settings as in gpt-oss, window", OURS, 128, 1, 8, 64, 16, "float16"),
)
CHUNKS = ((0, 1), (0, 7), (0, 17), (9, 6), (16, 20), (30, 1), (63, 2), (5, 0), (33, 16))
FEWER = ((0, 7), (16, 20), (5, 0), (33, 5))
MIXED = ((41, 1), (7, 1), (12, 19), (90, 1))
PREFILL = (
    *(Case(f"window {window}", CHUNKS, window=window, setting=(4, 16, 1, 1)) for window in (1, 5, 8, 64)),
    Case("full", CHUNKS, setting=(4, 16, 1, 1)),
    Case("full, as set for float32", FEWER),
    Case("one chunk alone", ((0, 33),), setting=(8, 16, 1, 1)),
    Case("one chunk behind a long prefix", ((140, 9),), setting=(8, 16, 1, 1)),
    Case("blocks of a whole page", CHUNKS, page_size=16, setting=(4, 16, 1, 1)),
    Case("blocks of less than a page", CHUNKS, page_size=64, setting=(4, 16, 1, 1)),
    Case("decoding rows beside chunks", MIXED, setting=(4, 16, 1, 1)),
    Case("decoding rows beside chunks, window", MIXED, window=8, setting=(4, 16, 1, 1)),
    Case("one key-value head, four query heads", FEWER, kv_heads=1, group=4, setting=(4, 16, 1, 1)),
    Case("three query heads a key-value head", FEWER, group=3, setting=(4, 16, 1, 1)),
    Case("pages with heads before tokens", FEWER, heads_first=True, setting=(4, 16, 1, 1)),
    Case("sinks that take nearly all", FEWER, sink=20.0, setting=(4, 16, 1, 1)),
    Case("sinks that take nearly nothing, window", FEWER, sink=-1e4, window=8, setting=(4, 16, 1, 1)),
    Case("float16", FEWER, dtype="float16", setting=(4, 16, 1, 1)),
    Case("float16, window", FEWER, dtype="float16", window=8, setting=(4, 16, 1, 1)),
    Case("heads and settings as in gpt-oss", ((100, 20),), None, 1, 8, 64, 16, "float16"),
    Case("heads and settings as in gpt-oss, window", ((100, 20), (0, 5)), 128, 1, 8, 64, 16, "float16"),
)


@dataclass(frozen=True)
class Paged:
    """What the kernels take."""

    key_PBKD: torch.Tensor
    value_PBKD: torch.Tensor
    table_SN: torch.Tensor
    query_TQD: torch.Tensor
    sinks_Q: torch.Tensor
    spans: tuple[Span, ...]


def lay_out(case: Case, device: str = "cpu", gap: int = 0) -> Paged:
    """Random contents for `case`; `gap` rows of the step before the first chunk belong to none."""
    dtype, size = getattr(torch, case.dtype), case.page_size
    used = sum(-(-(start + count) // size) for start, count in case.chunks)
    columns = max(-(-(start + count) // size) for start, count in case.chunks) + 3
    shape = (used + 2, case.kv_heads, size) if case.heads_first else (used + 2, size, case.kv_heads)
    cache = torch.full((2, *shape, case.head_size), torch.nan, dtype=dtype, device=device)
    key_PBKD, value_PBKD = cache.transpose(2, 3) if case.heads_first else cache
    tables = torch.randint(10**6, 2**31 - 1, (len(case.chunks), columns), dtype=torch.int32).tolist()
    free, spans, row = iter(torch.randperm(used + 2).tolist()), [], gap
    for (start, count), table in zip(case.chunks, tables, strict=True):
        low = 0 if case.window is None else max(0, start - case.window + 1)
        for block in range(-(-(start + count) // size)):
            table[block] = next(free) if (block + 1) * size > low and count else -1
        position = torch.arange(low, start + count)
        page = torch.tensor(table)[position // size].to(device)
        for one in (key_PBKD, value_PBKD):
            fresh = torch.randn(len(position), case.kv_heads, case.head_size, device=device)
            one[page, (position % size).to(device)] = fresh.to(dtype)
        spans.append(Span(row, count, start, table))
        row += count
    heads = case.kv_heads * case.group
    query_TQD = torch.randn(row, heads, case.head_size, device=device).to(dtype)
    sinks_Q = (torch.randn(heads, device=device) + case.sink).to(dtype)
    return Paged(
        key_PBKD, value_PBKD, torch.tensor(tables, dtype=torch.int32).to(device), query_TQD, sinks_Q, tuple(spans)
    )


def worst_head(found_TQD: torch.Tensor, paged: Paged, window: int | None) -> float:
    """The largest over heads of ‖found − wanted‖ / ‖wanted‖, where wanted is the reference in float64."""
    spans = [span for span in paged.spans if span.start >= 0 and span.count]
    wanted_TQD = paged_attention(
        paged.query_TQD.double(),
        paged.key_PBKD.nan_to_num(0.0),  # the reference reads whole pages
        paged.value_PBKD.nan_to_num(0.0),
        spans,
        paged.sinks_Q.double(),
        window,
    )
    rows = torch.cat([torch.arange(span.first, span.first + span.count) for span in spans])
    off = (found_TQD[rows].double() - wanted_TQD[rows]).norm(dim=(0, 2)) / wanted_TQD[rows].norm(dim=(0, 2))
    assert found_TQD.dtype == paged.query_TQD.dtype
    return off.max().item() if off.isfinite().all() else float("inf")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Whatever is allocated meanwhile holds NaN until it is written."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    torch.empty_like = lambda *shape, **options: poison(empty_like(*shape, **options))
    torch.Tensor.new_empty = lambda *shape, **options: poison(new_empty(*shape, **options))
    try:
        yield
    finally:
        torch.empty_like, torch.Tensor.new_empty = empty_like, new_empty


def decode_error(case: Case, device: str = "cpu") -> float:
    """Of `decode_attention`; infinite if a padding row is not zero."""
    from gptoss_dist.kernels import attention_decode

    paged = lay_out(case, device)
    setting = attention_decode.DecodeSetting(*case.setting) if case.setting else None
    position_S = torch.tensor([span.start for span in paged.spans], dtype=torch.int32, device=device)
    cache = paged.key_PBKD, paged.value_PBKD
    with poisoned():
        found = attention_decode.decode_attention(
            paged.query_TQD, *cache, paged.table_SN, position_S, paged.sinks_Q, case.window, setting=setting
        )
    if found[position_S < 0].count_nonzero():
        return float("inf")
    return worst_head(found, paged, case.window)


def prefill_error(case: Case, device: str = "cpu") -> float:
    """Of `prefill_attention`; infinite if it touches a row that belongs to no chunk."""
    from gptoss_dist.kernels import attention_prefill

    gap = 2
    paged = lay_out(case, device, gap)
    setting = attention_prefill.PrefillSetting(*case.setting) if case.setting else None
    fields = [(span.first, span.count, span.start) for span in paged.spans]
    places = torch.tensor(fields, dtype=torch.int32, device=device).T.contiguous()
    longest = max(count for _, count, _ in fields)
    cache = paged.key_PBKD, paged.value_PBKD
    with poisoned():
        found = attention_prefill.prefill_attention(
            paged.query_TQD, *cache, paged.table_SN, *places, paged.sinks_Q, case.window, longest, setting=setting
        )
    if not found[:gap].isnan().all():
        return float("inf")
    return worst_head(found, paged, case.window)


def main(kind: str, seed: int) -> None:
    """Print the errors of the small cases of `kind`."""
    import interpreter_loops  # noqa: F401

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    cases, error_of = {"decode": (DECODE, decode_error), "prefill": (PREFILL, prefill_error)}[kind]
    print(json.dumps({case.name: error_of(case) for case in cases}))


def run_interpreted(kind: str) -> dict[str, float]:
    """The errors of the small cases, from a process of its own: the interpreter is chosen before Triton is imported."""
    import subprocess

    environ: dict[str, Any] = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    seed = str(int.from_bytes(os.urandom(3)))
    command = [sys.executable, "-W", "ignore", __file__, kind, seed]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    print("seed", seed)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
