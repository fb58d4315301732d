"""A rank's end of its connection to the hub."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from gptoss_dist.errors import RankError
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.address import address_of_rank_0, loopback
from gptoss_dist.runtime.cause import Cause
from gptoss_dist.runtime.hub import Hub
from gptoss_dist.runtime.line import Line

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_KEY = "hub"


def open_hub(env: RankEnv, store: Store, join_timeout: timedelta) -> Hub | None:
    """On rank 0, start the hub and say in `store` how to reach it; None on the other ranks."""
    if env.rank != 0:
        return None
    hub = Hub(env.world_size, only_at=loopback(), join_seconds=join_timeout.total_seconds())
    store.set(_KEY, json.dumps({"port": hub.port, "token": hub.token}))
    return hub


class Peer:
    """Reports this rank's cause, and calls `on_cause(cause, speaker)` in a daemon thread for the one decided on."""

    def __init__(self, env: RankEnv, store: Store, join_timeout: timedelta, on_cause: Callable[[Cause, int], None]):
        """Connect to the hub. Raises RankError when it cannot be reached."""
        self._env = env
        self._on_cause = on_cause
        self._leaving = False
        self._line = _connect(env, store, join_timeout)
        threading.Thread(target=self._run, name="gptoss-peer", daemon=True).start()

    def report(self, cause: Cause) -> bool:
        """Whether the hub could be told; it answers every rank with the cause that came first."""
        return self._line.send({"cause": cause.to_dict()})

    def leave(self) -> None:
        """Say that this rank is done, so that its end is no death."""
        self._leaving = True
        self._line.send({"left": True})

    def close(self) -> None:
        """End the connection."""
        self._leaving = True
        self._line.close()

    def _run(self) -> None:
        while (messages := self._line.receive()) is not None:
            for message in messages:
                self._on_cause(Cause.from_dict(message["cause"]), int(message["speaker"]))
        if not self._leaving:
            self._on_cause(Cause.vanished(0), self._speaker_without_hub())

    def _speaker_without_hub(self) -> int:
        """Nobody can choose a speaker when rank 0 is gone: rank 1 says it, and the first rank of each other machine."""
        speaks = self._env.rank == 1 or (self._env.rank > 1 and self._env.local_rank == 0)
        return self._env.rank if speaks else 0


def _connect(env: RankEnv, store: Store, join_timeout: timedelta) -> Line:
    seconds = join_timeout.total_seconds()
    try:
        hub = json.loads(store.get(_KEY))
        connection = socket.create_connection((address_of_rank_0(env.rank), hub["port"]), timeout=seconds)
    except (OSError, RuntimeError) as error:  # torch's store errors are RuntimeErrors
        raise RankError(
            f"rank {env.rank} could not reach rank 0 at {os.environ['MASTER_ADDR']} within {seconds:.0f} s ({error}): "
            "was rank 0 started, and does a firewall allow connections between the machines on any port?"
        ) from error
    line = Line(connection)
    line.send({"rank": env.rank, "token": hub["token"]})
    return line
