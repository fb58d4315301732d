"""Threads stand for ranks: each has a board of its own over the same memory. tests/multi runs real ones."""

from __future__ import annotations

import logging
import mmap
import random
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_dist.runtime import board as module
from gptoss_dist.runtime import shared_memory
from gptoss_dist.runtime.board import SLOTS, Board, open_board, page_bytes
from gptoss_dist.runtime.process import Process, process_of

SLOT = 64
WORLD = 3


def on_all(act: Callable[[Board, int], object]) -> list[object]:
    """What each rank returns."""
    memory = mmap.mmap(-1, WORLD * page_bytes(SLOT))
    with ThreadPoolExecutor(WORLD) as pool:
        running = [pool.submit(act, Board(memory, rank, [process_of()] * WORLD), rank) for rank in range(WORLD)]
        return [one.result(timeout=60) for one in running]


def test_many_messages_arrive_in_order():
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")

    def act(board: Board, rank: int) -> list[object]:
        shared, own = random.Random(seed), random.Random(seed + rank)
        found = []
        for number in range(400):
            source = shared.randrange(-1, WORLD)
            mine = f"{number} of {rank}".encode() + bytes(shared.randrange(0, 40))
            if own.random() < 0.05:
                time.sleep(own.random() / 1000)
            found.append(board.all_gather(mine) if source < 0 else board.broadcast(mine, source))
        return found

    results = on_all(act)
    assert results[0] == results[1] == results[2]
    for number, found in enumerate(results[0]):
        for rank, message in enumerate(found if isinstance(found, list) else [found]):
            assert message.startswith(f"{number} of ".encode())
            if isinstance(found, list):
                assert message.startswith(f"{number} of {rank}".encode())


def test_what_is_too_long_is_announced_to_all():
    def act(board: Board, rank: int) -> list[object]:
        whole = board.broadcast(bytes(SLOT), 1)
        long = board.broadcast(bytes(SLOT + 1), 1)
        one_long = board.all_gather(bytes(SLOT + 1) if rank == 2 else b"short")
        return [whole, long, one_long, board.all_gather(b"after")]

    assert on_all(act) == [[bytes(SLOT), None, None, [b"after"] * WORLD]] * WORLD


def test_a_writer_waits_for_the_slowest_reader():
    ahead, may_read = [], threading.Event()

    def act(board: Board, rank: int) -> None:
        if rank == 2:
            may_read.wait(30)
        for number in range(SLOTS + 3):
            assert board.broadcast(bytes([number]), 0) == bytes([number])
            if rank == 0:
                ahead.append(number)
                if len(ahead) == SLOTS:
                    threading.Timer(0.2, lambda: (ahead.append("let go"), may_read.set())).start()

    on_all(act)
    assert ahead == [*range(SLOTS), "let go", *range(SLOTS, SLOTS + 3)]


def test_the_lock_that_orders_is_released_before_it_is_taken():
    """The order that makes a full barrier leaves it taken; what it orders shows on other processors only."""

    def act(board: Board, rank: int) -> bool:
        board.all_gather(b"")
        return board._fence.locked()

    assert on_all(act) == [True] * WORLD


def test_a_rank_that_waits_for_long_seldom_looks():
    def act(board: Board, rank: int) -> int:
        if rank == 0:
            time.sleep(1)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        board.broadcast(b"", 0)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

    assert max(on_all(act)[1:]) < 2000, "naps in a second; each costs some 20 µs of a core"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("gptoss_dist"), "propagate", True)
    caplog.set_level(logging.INFO, logger="gptoss_dist")
    return caplog


def opened(monkeypatch, boots: list[str | None], folder: Path, look=lambda: None, **first) -> list[Board | None]:
    """`open_board` on two ranks, threads that exchange through a list; in each exchange rank 0 does `look`.

    `first`: what rank 0 says of its process.
    """
    monkeypatch.setattr(shared_memory, "_SHARED", folder)
    local = threading.local()

    def process() -> Process | None:
        mine = replace(process_of(), **(first if local.rank == 0 else {}))
        return replace(mine, boot=boots[local.rank]) if boots[local.rank] else None

    monkeypatch.setattr(module, "process_of", process)
    barrier, values = threading.Barrier(2), [None, None]

    def all_gather(value):
        barrier.wait(30)
        values[local.rank] = value
        if local.rank == 0:
            look()
        barrier.wait(30)
        return list(values)

    def act(rank: int) -> Board | None:
        local.rank = rank
        return open_board(rank, 2, lambda value: all_gather(value)[0], all_gather)

    with ThreadPoolExecutor(2) as pool:
        return [one.result(timeout=60) for one in [pool.submit(act, rank) for rank in range(2)]]


def test_ranks_of_one_machine_open_one_and_leave_no_file(monkeypatch, tmp_path):
    boards = opened(monkeypatch, ["this", "this"], tmp_path)
    assert not list(tmp_path.iterdir())
    with ThreadPoolExecutor(2) as pool:
        messages = [pool.submit(board.all_gather, bytes([rank])) for rank, board in enumerate(boards)]
        assert [one.result(timeout=60) for one in messages] == [[b"\0", b"\1"]] * 2
    for board in boards:
        board.close()


def test_its_memory_is_there_before_anyone_writes(monkeypatch, tmp_path):
    """A page that is promised only, on a full file system, ends who writes it by SIGBUS."""
    held = []

    def look() -> None:
        held.extend(one.stat().st_blocks * 512 for one in tmp_path.iterdir())

    for board in opened(monkeypatch, ["this", "this"], tmp_path, look):
        board.close()
    assert min(held) >= 2 * page_bytes()


@pytest.mark.parametrize("boots", [["this", "that"], [None, None]], ids=["two machines", "unknown machines"])
def test_ranks_of_several_machines_open_none(monkeypatch, tmp_path, said, boots):
    assert opened(monkeypatch, boots, tmp_path) == [None, None]
    assert not list(tmp_path.iterdir())
    assert not said.records


@pytest.mark.parametrize("first", [{"namespace": "pid:[1]"}, {"started": 1}], ids=["a container", "not in /proc"])
def test_ranks_that_could_not_see_each_other_end_open_none_and_say_so(monkeypatch, tmp_path, said, first):
    assert opened(monkeypatch, ["this", "this"], tmp_path, **first) == [None, None]
    (record,) = said.records
    assert "rank 0 does not see the process of rank" in record.getMessage()


def test_no_memory_to_share_is_said(monkeypatch, tmp_path, said):
    assert opened(monkeypatch, ["this", "this"], tmp_path / "missing") == [None, None]
    assert [record.getMessage() for record in said.records] == [
        f"messages between the ranks go through gloo, which takes longer: {tmp_path}/missing gives no "
        f"{2 * page_bytes() >> 10} KiB (No such file or directory). Make room there (docker: --shm-size)."
    ]
