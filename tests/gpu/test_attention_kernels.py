"""The attention kernels at gpt-oss's own head sizes, on a GPU, against the reference in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

from attention_cases import Case, decode_error, lay_out, prefill_error, worst_head

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

BOUND = {"bfloat16": 6e-3, "float16": 1e-3, "float32": 1e-5}
"""For each head: weights and results are rounded, 2^-9 (bfloat16) or 2^-11 (float16) each."""
EDGES = tuple((position, 1) for position in (0, 15, 16, 63, 64, 126, 127, 128, 129, 1023, 1024, -1, 8191))
LONG = ((131071, 1), (5, 1), (-1, 1))
CHUNKS = ((0, 1), (0, 127), (0, 129), (1000, 17), (3, 700), (8100, 1), (64, 0), (120, 16), (5000, 512))
REAL = Case("", kv_heads=8, head_size=64, page_size=16, dtype="bfloat16")
LAYOUTS = pytest.mark.parametrize(("page_size", "heads_first"), [(16, False), (64, False), (64, True), (16, True)])
WINDOWS = pytest.mark.parametrize("window", [None, 128], ids=["full", "sliding"])


@pytest.fixture(autouse=True)
def random_inputs():
    print("seed", torch.seed())


@LAYOUTS
@WINDOWS
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_decode_computes_what_the_reference_computes(kv_heads, window, page_size, heads_first):
    case = replace(REAL, chunks=EDGES, window=window, kv_heads=kv_heads, page_size=page_size, heads_first=heads_first)
    assert decode_error(case, "cuda") < BOUND[case.dtype]


@WINDOWS
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decode_in_other_dtypes(dtype, window):
    assert decode_error(replace(REAL, chunks=EDGES, window=window, dtype=dtype), "cuda") < BOUND[dtype]


@WINDOWS
@pytest.mark.parametrize("page_size", [16, 64])
def test_decode_at_the_longest_context_beside_short_ones(page_size, window):
    case = replace(REAL, chunks=LONG, window=window, kv_heads=2, page_size=page_size)
    assert decode_error(case, "cuda") < BOUND[case.dtype]


@pytest.mark.parametrize("setting", [(64, 2, 4, 1), (64, 1, 3, 8), (64, 4, 4, 4), (128, 4, 3, 2), (128, 8, 3, 16)])
def test_decode_by_other_settings(setting):
    assert decode_error(replace(REAL, chunks=EDGES, setting=setting), "cuda") < BOUND[REAL.dtype]


@LAYOUTS
@WINDOWS
@pytest.mark.parametrize("kv_heads", [8, 1])
def test_prefill_computes_what_the_reference_computes(kv_heads, window, page_size, heads_first):
    case = replace(REAL, chunks=CHUNKS, window=window, kv_heads=kv_heads, page_size=page_size, heads_first=heads_first)
    assert prefill_error(case, "cuda") < BOUND[case.dtype]


@WINDOWS
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_prefill_in_other_dtypes(dtype, window):
    assert prefill_error(replace(REAL, chunks=CHUNKS, window=window, dtype=dtype), "cuda") < BOUND[dtype]


@WINDOWS
@pytest.mark.parametrize("setting", [(16, 64, 4, 3), (16, 128, 8, 3), (32, 64, 8, 3), (8, 64, 4, 2)])
def test_prefill_by_other_settings(setting, window):
    assert prefill_error(replace(REAL, chunks=CHUNKS, window=window, setting=setting), "cuda") < BOUND[REAL.dtype]


@WINDOWS
def test_pages_that_no_32_bit_number_reaches(window):
    from gptoss_dist.kernels.attention_decode import decode_attention
    from gptoss_dist.kernels.attention_prefill import prefill_attention

    paged = lay_out(replace(REAL, chunks=((300, 1), (1023, 1), (40, 1)), window=window), "cuda")
    pages = len(paged.key_PBKD)
    before = 2**31 // paged.key_PBKD[0].numel() + 1
    large = torch.empty(2, before + pages, *paged.key_PBKD.shape[1:], dtype=torch.bfloat16, device="cuda")
    large[0, before:], large[1, before:] = paged.key_PBKD, paged.value_PBKD
    inside = (paged.table_SN >= 0) & (paged.table_SN < pages)
    table_SN = torch.where(inside, paged.table_SN + before, paged.table_SN)
    position_S = torch.tensor([300, 1023, 40], dtype=torch.int32, device="cuda")
    found = decode_attention(paged.query_TQD, *large, table_SN, position_S, paged.sinks_Q, window)
    assert worst_head(found, paged, window) < BOUND[REAL.dtype]
    first_S, count_S = torch.arange(3, dtype=torch.int32, device="cuda"), torch.ones_like(position_S)
    found = prefill_attention(
        paged.query_TQD, *large, table_SN, first_S, count_S, position_S, paged.sinks_Q, window, longest=1
    )
    assert worst_head(found, paged, window) < BOUND[REAL.dtype]


@WINDOWS
def test_a_captured_graph_follows_new_positions_and_tables(window):
    from gptoss_dist.kernels.attention_decode import decode_attention

    paged = lay_out(replace(REAL, chunks=((300, 1), (1023, 1), (40, 1), (129, 1))), "cuda")
    position_S = torch.tensor([300, 1023, 40, 129], dtype=torch.int32, device="cuda")
    cache = paged.key_PBKD, paged.value_PBKD

    def attend() -> torch.Tensor:
        return decode_attention(paged.query_TQD, *cache, paged.table_SN, position_S, paged.sinks_Q, window)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend()
    graph.replay()
    assert worst_head(found, paged, window) < BOUND[REAL.dtype]
    pages = len(paged.key_PBKD)
    moved = torch.randperm(pages, device="cuda")
    for one in cache:
        one.copy_(one[moved].clone())
    inside = (paged.table_SN >= 0) & (paged.table_SN < pages)
    paged.table_SN[inside] = moved.argsort().int()[paged.table_SN[inside].long()]
    places = [7, 900, -1, 128]
    position_S.copy_(torch.tensor(places))
    found.fill_(torch.nan)
    graph.replay()
    spans = [
        replace(span, start=place, table=table)
        for span, place, table in zip(paged.spans, places, paged.table_SN.tolist(), strict=True)
    ]
    assert worst_head(found, replace(paged, spans=tuple(spans)), window) < BOUND[REAL.dtype]
    assert not found[2].count_nonzero()
