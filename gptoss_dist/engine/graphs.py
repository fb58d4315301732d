"""Steps that only decode, played from CUDA graphs: one launch a step, over buffers that stay where they are.

    a step of 5 sequences ──► buffers of 64 rows ──► played for 8 rows (the next bucket) ──► logits of the first 5
                               rows 5, 6 and 7 repeat row 4, and keep nothing

A graph has fixed shapes, so there is one for each bucket of sequences and each width of the page tables. Two widths are
enough: how many programs the attention starts depends on what a table could hold only up to a few thousand tokens
(`attention_decode.split_count`), beyond which the chip is full. A row that repeats a real one chooses the same experts,
so padding reads no expert that is not read anyway.

Everything but the capture runs on a CPU too: `NoGraphs` calls what `CudaGraphs` replays.

Shape legend: S sequences (rows), N pages a table, V rows of the vocabulary here.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from gptoss_dist.engine.decode_buffers import DecodeBuffers, DecodeInput, DecodeOutput

_CONTEXTS = (2048,)
"""Contexts in tokens for which there are narrower tables than for the longest."""
MOST_WIDTHS = len(_CONTEXTS) + 1
"""Widths that `table_widths` gives at most."""
_SMALL = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_STEP = 32
"""Between buckets beyond the small ones."""

Key = tuple[str | int, ...]
"""Says which of all graphs."""


def batch_buckets(most: int) -> tuple[int, ...]:
    """Sequences for which there is a graph, up to `most`: dense where a row more costs much, and `most` itself."""
    larger = range(_SMALL[-1] + _STEP, most, _STEP)
    return (*(size for size in _SMALL if size < most), *larger, most)


def table_widths(most: int, page_size: int) -> tuple[int, ...]:
    """Pages of a table for which there are graphs, up to `most`."""
    return (*(width for context in _CONTEXTS if (width := context // page_size) < most), most)


def next_up(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of the sorted `sizes` that is at least `wanted`; ValueError if none is."""
    place = bisect_left(sizes, wanted)
    if place == len(sizes):
        raise ValueError(f"{wanted} is more than the largest of {list(sizes)}.")
    return sizes[place]


class Player(Protocol):
    """Runs the same function again and again over the same memory."""

    def prepare(self, key: Key, function: Callable[[], object]) -> None:
        """Make `function` ready to be played; it may be run, and reads and writes nothing but its buffers."""

    def play(self, key: Key) -> None:
        """Run the function prepared as `key`."""

    def close(self) -> None:
        """Forget all functions."""


class NoGraphs:
    """Calls the functions: on a CPU, or with engine.graphs=false."""

    def __init__(self) -> None:
        """Nothing is prepared."""
        self._functions: dict[Key, Callable[[], object]] = {}

    def prepare(self, key: Key, function: Callable[[], object]) -> None:
        """Keep the function."""
        self._functions[key] = function

    def play(self, key: Key) -> None:
        """Call it."""
        self._functions[key]()

    def close(self) -> None:
        """Forget the functions."""
        self._functions.clear()


class CudaGraphs:
    """Replays captured graphs. All share one pool of memory, so of one replay nothing outlives the next but buffers."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is captured."""
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: dict[Key, torch.cuda.CUDAGraph] = {}

    def prepare(self, key: Key, function: Callable[[], object]) -> None:
        """Run `function` once, so that its kernels are compiled and its libraries have their workspace; capture it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads of the process do with the device does not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        self._graphs[key] = graph

    def play(self, key: Key) -> None:
        """One launch."""
        self._graphs[key].replay()

    def close(self) -> None:
        """Destroy the graphs, once the last replay is done."""
        torch.cuda.synchronize(self._device)
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()


class DecodeSteps:
    """Every bucket's step, prepared once and then played."""

    def __init__(
        self,
        compute: Callable[[DecodeInput, DecodeOutput], None],
        buffers: DecodeBuffers,
        output: DecodeOutput,
        player: Player,
        buckets: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        """Prepare `compute`, which writes to `output`, for every bucket and width, the largest first."""
        self._compute, self._buffers, self._output, self._player = compute, buffers, output, player
        self._buckets, self._widths = tuple(buckets), tuple(widths)
        started = time.perf_counter()
        for rows in reversed(self._buckets):
            for pages in reversed(self._widths):
                self._prepare(rows, pages)
        self._seconds = time.perf_counter() - started

    @property
    def summary(self) -> str:
        """What was prepared, and in what time."""
        count = len(self._buckets) * len(self._widths)
        return f"{count} CUDA graphs of up to {self._buckets[-1]} sequences in {self._seconds:.1f} s"

    def _prepare(self, rows: int, pages: int) -> None:
        given, output = self._buffers.all.narrow(0, rows, pages), self._output.narrow(rows)
        self._player.prepare((rows, pages), lambda: self._compute(given, output))

    def run(self, given: DecodeInput) -> DecodeOutput:
        """Logits and tokens of the rows of `given`."""
        rows, pages = next_up(self._buckets, given.count), next_up(self._widths, given.pages)
        self._buffers.fill(given, rows)
        self._player.play((rows, pages))
        return self._output.narrow(given.count)
