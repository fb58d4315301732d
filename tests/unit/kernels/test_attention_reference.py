"""Paged attention against transformers' own eager attention over contiguous keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gptoss_dist.kernels.attention_reference import Span, paged_attention

QUERY_HEADS, KV_HEADS, HEAD_SIZE, PAGE_SIZE, PAGES = 8, 2, 16, 4, 40


def eager(query_SQD, key_SKD, value_SKD, sinks_Q, window):
    """All positions at once, by transformers; [S, Q, D]."""
    length = len(query_SQD)
    row, column = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = (column <= row) & (column > row - window if window else True)
    mask = torch.zeros(length, length).masked_fill(~seen, -torch.inf)[None, None]
    module = SimpleNamespace(num_key_value_groups=QUERY_HEADS // KV_HEADS, sinks=sinks_Q, training=False)
    batched = (one.transpose(0, 1)[None] for one in (query_SQD, key_SKD, value_SKD))
    return eager_attention_forward(module, *batched, mask, scaling=HEAD_SIZE**-0.5)[0][0]


@pytest.mark.parametrize("window", [None, 1, 5, 8, 64])
@pytest.mark.parametrize("chunk", [1, 3, 7, 30])
def test_any_split_into_chunks_gives_what_eager_attention_gives(window, chunk):
    generator = torch.Generator().manual_seed(chunk)
    lengths = (30, 9)
    keys = torch.full((PAGES, PAGE_SIZE, KV_HEADS, HEAD_SIZE), torch.nan)
    values = keys.clone()
    sinks_Q = torch.randn(QUERY_HEADS, generator=generator)
    pages = iter(torch.randperm(PAGES, generator=generator).tolist())
    for length in lengths:
        query = torch.randn(length, QUERY_HEADS, HEAD_SIZE, generator=generator)
        key, value = torch.randn(2, length, KV_HEADS, HEAD_SIZE, generator=generator)
        wanted = eager(query, key, value, sinks_Q, window)
        table = [next(pages) for _ in range(-(-length // PAGE_SIZE))]
        for start in range(0, length, chunk):
            count = min(chunk, length - start)
            for place in range(start, start + count):
                keys[table[place // PAGE_SIZE], place % PAGE_SIZE] = key[place]
                values[table[place // PAGE_SIZE], place % PAGE_SIZE] = value[place]
            # What no query of this chunk or a later one sees has been given back.
            hidden = 0 if window is None else max(0, start - window + 1) // PAGE_SIZE
            left = [-1] * hidden + table[hidden : -(-(start + count) // PAGE_SIZE)]
            span = Span(first=0, count=count, start=start, table=left)
            found = paged_attention(query[start : start + count], keys, values, [span], sinks_Q, window)
            torch.testing.assert_close(found, wanted[start : start + count], atol=1e-5, rtol=1e-5)


def test_requests_of_one_step_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, PAGES, PAGE_SIZE, KV_HEADS, HEAD_SIZE, generator=generator)
    query = torch.randn(6, QUERY_HEADS, HEAD_SIZE, generator=generator)
    sinks = torch.zeros(QUERY_HEADS)
    spans = [Span(0, 2, 3, (7, 9)), Span(2, 1, 6, (1, 2)), Span(3, 3, 0, (30,))]
    together = paged_attention(query, keys, values, spans, sinks, None)
    for span in spans:
        rows = slice(span.first, span.first + span.count)
        alone = paged_attention(query[rows], keys, values, [Span(0, span.count, span.start, span.table)], sinks, None)
        assert torch.equal(together[rows], alone)


def test_bfloat16_comes_back_as_bfloat16_and_close():
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, PAGES, PAGE_SIZE, KV_HEADS, HEAD_SIZE, generator=generator).bfloat16()
    query = torch.randn(4, QUERY_HEADS, HEAD_SIZE, generator=generator).bfloat16()
    sinks = torch.randn(QUERY_HEADS, generator=generator).bfloat16()
    spans = [Span(0, 4, 0, (3,))]
    found = paged_attention(query, keys, values, spans, sinks, 2)
    wanted = paged_attention(query.double(), keys.double(), values.double(), spans, sinks.double(), 2)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).norm() / wanted.norm() < 2**-8  # one rounding of the result
