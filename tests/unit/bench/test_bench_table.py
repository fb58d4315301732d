from __future__ import annotations

from gptoss_dist.bench.load import Kind, Row
from gptoss_dist.bench.statistics import RowResult, blank
from gptoss_dist.bench.table import head, line, render

TABLE = """\
|                       |                     |                    |    first token ms p50 / |  between tokens ms p50 \
/ |                   |             |         |        |                         |
| load                  | output tok/s in all | tok/s a stream (n) |                 p99 (n) |                  p99 (n\
) | prefill tok/s (n) | limit tok/s | reached | in all | notes                   |
|-----------------------|---------------------|--------------------|-------------------------|------------------------\
--|-------------------|-------------|---------|--------|-------------------------|
| 64 streams, 1024/1024 |               2,566 |         42.5 (128) |       1500 / 2900 (128) |  23.53 / 41.20 (130,944\
) |        41,000 (1) |       5,000 |    54 % |   51 % |                         |
| prefill 1x8192        |                   - |                  - |      98.20 / 98.20 (16) |                        \
- |       83,420 (16) |      87,000 |    96 % |      - |                         |
| context 32768/256     |                80.0 |            200 (1) |                       - |                        \
- |                 - |     unknown |       - |      - | partial, loss 15 %, 2   |
|                       |                     |                    |                         |                        \
  |                   |             |         |        | failed, 1 ended early   |
| context 131072/256    |                   - |                  - |                       - |                        \
- |                 - |     unknown |       - |      - | does not fit            |
context 131072/256: does not fit: 131328 tokens, and the cache takes 4096
context 32768/256: 2 × HTTP 503
limit: nobody knows"""


def lines() -> list[RowResult]:
    many, prefill, long, longest = (
        blank(row)
        for row in (
            Row(Kind.decode, 64, 1024, 1024, 128),
            Row(Kind.prefill, 1, 8192, 1, 1),
            Row(Kind.context, 1, 32768, 256, 1),
            Row(Kind.context, 1, 131072, 256, 1),
        )
    )
    many.output_tokens_per_s, many.decode_tokens_per_s, many.prefill_tokens_per_s = 2566.0, 42.5, 41000.0
    many.ttft_p50_ms, many.ttft_p99_ms, many.itl_p50_ms, many.itl_p99_ms = 1500.0, 2900.0, 23.53, 41.2
    many.limit_tokens_per_s, many.fraction, many.fraction_in_all = 5000.0, 0.544, 0.5132
    many.decode_samples, many.ttft_samples, many.itl_samples, many.prefill_samples = 128, 128, 130944, 1
    prefill.ttft_samples = prefill.prefill_samples = 16
    long.decode_samples = 1
    prefill.output_tokens_per_s, prefill.prefill_tokens_per_s = 10.2, 83420.0
    prefill.ttft_p50_ms = prefill.ttft_p99_ms = 98.2
    prefill.limit_tokens_per_s, prefill.fraction = 87000.0, 0.9589
    long.status, long.loss, long.errors, long.short = "partial", 0.15, 2, 1
    long.output_tokens_per_s, long.decode_tokens_per_s = 80.0, 200.0
    long.messages, long.limit_note = {"HTTP 503": 2}, "nobody knows"
    longest.status = "does not fit: 131328 tokens, and the cache takes 4096"
    return [many, prefill, long, longest]


def test_the_table():
    assert render(lines()).splitlines() == TABLE.splitlines()


def test_no_rows_still_make_a_table():
    assert len(render([]).splitlines()) == 2


def test_a_row_in_one_line():
    many, prefill, *_ = lines()
    assert line(many) == (
        "64 streams, 1024/1024: 2,566 tokens/s in all, 42.5 a stream, first token 1500 / 2900 ms, "
        "between tokens 23.53 / 41.20 ms"
    )
    assert line(prefill).startswith("prefill 1x8192: 83,420 tokens/s in all, - a stream, first token 98.20 / 98.20 ms")


def test_head():
    machine = {
        "device": "NVIDIA H200",
        "devices": 4,
        "plan": {"name": "tp", "dp": 1, "tp": 4},
        "target": None,
        "versions": {"torch": "2.13.0", "kernels": "absent", "triton": "3.6.0"},
        "ready": {"process_s": 14.2},
    }
    assert head(machine).splitlines() == [
        "device: NVIDIA H200; devices: 4; plan: name=tp, dp=1, tp=4",
        "torch 2.13.0, triton 3.6.0",
        "ready after process_s=14.2",
    ]
