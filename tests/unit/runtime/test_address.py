from __future__ import annotations

import socket

import pytest

from gptoss_dist.runtime.address import address_of_rank_0, listen, loopback


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1"])
def test_on_one_machine_all_use_its_own_address(monkeypatch, address: str):
    monkeypatch.setenv("MASTER_ADDR", address)
    assert loopback() == address_of_rank_0(0) == address_of_rank_0(3) == address


def test_over_several_machines_the_others_use_the_name_that_they_were_given(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert loopback() is None
    assert (address_of_rank_0(0), address_of_rank_0(1)) == ("localhost", "node7")


def test_a_loopback_address_is_listened_at_alone():
    with listen("127.0.0.1", 1) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        socket.create_connection(listener.getsockname()[:2]).close()


def test_without_one_every_address_is_listened_at():
    with listen(None, 1) as listener:
        assert listener.getsockname()[0] in ("::", "0.0.0.0")
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
