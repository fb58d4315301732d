from __future__ import annotations

import os
import socket

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.server.front import bind


def test_a_free_port_is_found_and_then_in_use():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        with pytest.raises(ConfigError, match=f"job.port={port}: another program listens on 127.0.0.1:{port}"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()


def test_small_pieces_are_sent_at_once():
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("203.0.113.7", 0, "job.host=203.0.113.7: this machine has no such address"),
        ("no such host", 0, "job.host=no such host: no such host"),
        ("a" * 70 + ".x", 0, "no such host"),
    ],
)
def test_a_place_where_nobody_can_listen_is_named(host, port, message):
    with pytest.raises(ConfigError, match=message):
        bind(host, port)


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may listen anywhere")
def test_a_privileged_port_is_named():
    with pytest.raises(ConfigError, match=r"job\.port=80: ports below 1024"):
        bind("127.0.0.1", 80)
