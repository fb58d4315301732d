from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from gptoss_dist.errors import ConfigError, RankError
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.store import join_store, master

RANK_0 = RankEnv(0, 0, 2, 2, "torchrun")


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
