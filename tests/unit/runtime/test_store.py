from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from gptoss_dist.errors import ConfigError, RankError
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.store import join_store, master, meet

RANK_0 = RankEnv(0, 0, 2, 2, "torchrun")
WORLD = 3


@pytest.fixture
def server() -> TCPStore:
    """It outlives the ranks, as torchrun's does."""
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def client(server: TCPStore, seconds: float = 60) -> TCPStore:
    return TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=seconds))


def names_of_all(server: TCPStore, calls: int) -> list[list[str]]:
    """What each rank, a thread, finds in a life of several calls."""

    def live(rank: int) -> list[str]:
        env, store = RankEnv(rank, rank, WORLD, WORLD, "torchrun"), client(server)
        return [meet(store, env, call, timedelta(seconds=60)) for call in range(calls)]

    with ThreadPoolExecutor(WORLD) as pool:
        return [one.result() for one in [pool.submit(live, rank) for rank in range(WORLD)]]


def test_ranks_that_meet_have_a_name_in_common_that_nobody_had_before(server):
    client(server).append("questions", "0/asked-by-one-who-died ")
    lives = [names_of_all(server, calls=4) for _ in range(3)]
    for names in lives:
        assert names == [names[0]] * WORLD
    assert len({name for names in lives for name in names[0]}) == 3 * 4


def test_ranks_that_are_not_met_are_waited_for_no_longer_than_told(server):
    client(server).append("questions", "0/asked-by-one-who-died ")
    for rank in (0, 1):
        env = RankEnv(rank, rank, 2, 2, "torchrun")
        with pytest.raises(RankError, match=rf"rank {rank} did not meet the other ranks, 2 in all, within 1 s"):
            meet(client(server, seconds=1), env, 0, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("address", "port", "message"),
    [
        (None, "1234", "MASTER_ADDR is not set"),
        ("localhost", None, "MASTER_PORT is not set"),
        ("localhost", "0", "MASTER_PORT=0 is no port"),
        ("localhost", "70000", "MASTER_PORT=70000 is no port"),
        ("localhost", "http", "MASTER_PORT=http is no port"),
    ],
)
def test_an_address_that_is_none(monkeypatch, address: str | None, port: str | None, message: str):
    for name, value in (("MASTER_ADDR", address), ("MASTER_PORT", port)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        master()


def test_a_port_that_another_program_holds(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(RankError, match=f"cannot listen on port {port}"):
            join_store(RANK_0, timedelta(seconds=5))


def test_a_rank_0_that_never_comes_is_one_line(monkeypatch, capfd: pytest.CaptureFixture[str]):
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(RankError, match=f"^rank 0 did not answer at localhost:{port} within 1 s"):
        join_store(RankEnv(1, 1, 2, 2, "torchrun"), timedelta(seconds=1))
    assert capfd.readouterr().err == ""
