"""The key-value store through which ranks find each other before they can talk."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # not in its __all__

from gptoss_dist.errors import ConfigError, RankError
from gptoss_dist.launcher.env import RankEnv

_TORCHRUN_HOSTS_IT = "TORCHELASTIC_USE_AGENT_STORE"
_POLL_SECONDS = 0.02
_KNOCK_SECONDS = 0.1
_generation = itertools.count()


def join_store(env: RankEnv, timeout: timedelta) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT: torchrun's, or else one that rank 0 hosts.

    Keys of earlier calls in this process and of ranks before a restart by torchrun are out of the way. Every rank must
    call it equally often. Where torchrun hosts the store, rank 0 waits for the others. Raises ConfigError without an
    address, and RankError when the store cannot be hosted or reached, or the others do not come.
    """
    host, port = master()
    hosts = env.rank == 0 and os.environ.get(_TORCHRUN_HOSTS_IT) != "True"
    if not (hosts or _is_answered(host, port, timeout)):
        raise RankError(_unreachable(env, host, port, timeout, hosts))
    try:
        store = TCPStore(host, port, is_master=hosts, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        raise RankError(_unreachable(env, host, port, timeout, hosts)) from error
    call = next(_generation)
    if os.environ.get(_TORCHRUN_HOSTS_IT) == "True":
        return PrefixStore(meet(PrefixStore("gptoss_dist", store), env, call, timeout), store)
    return PrefixStore(f"gptoss_dist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{call}", store)


def meet(store: Store, env: RankEnv, call: int, timeout: timedelta) -> str:
    """A name that these ranks have in common and no ranks before them had. Collective. Raises RankError.

    torchrun keeps its store when it starts ranks again, and nothing in their environment says which time it is: each
    node counts restarts for itself, and not those that another node's failure brought about. So rank 0 makes up a name
    and gives it to everyone who asks; whether who asked is still there shows when it thanks. `call`: how often this
    process met the others before; who is further on is answered then.
    """
    try:
        if env.rank == 0:
            return _answer(store, env.world_size - 1, call, timeout)
        question = f"{call}/{secrets.token_hex(8)}"
        store.append("questions", f"{question} ")  # type: ignore[attr-defined]  # not in its stub
        name = store.get(f"answer/{question}").decode()
        store.add(f"thanks/{name}", 1)
    except dist.DistError as error:
        raise RankError(
            f"rank {env.rank} did not meet the other ranks, {env.world_size} in all, within "
            f"{timeout.total_seconds():.0f} s: were they all started, and did one end before?"
        ) from error
    return name


def _answer(store: Store, others: int, call: int, timeout: timedelta) -> str:
    """Rank 0's part. Raises DistStoreError when the others do not come."""
    name, answered = secrets.token_hex(8), set[str]()
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(f"thanks/{name}", 0) < others:
        for question in set(store.get("questions").decode().split()) - answered:
            if question.startswith(f"{call}/"):
                store.set(f"answer/{question}", name)
            answered.add(question)
        if time.monotonic() > deadline:
            raise dist.DistStoreError("not all asked")
        time.sleep(_POLL_SECONDS)
    return name


def _is_answered(host: str, port: int, timeout: timedelta) -> bool:
    """Whether somebody listens there before the time is over.

    torch's own client then tries for as long again, and writes its stack to standard error each time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=left):
            return True
        time.sleep(_KNOCK_SECONDS)
    return False


def master() -> tuple[str, int]:
    """MASTER_ADDR and MASTER_PORT of the environment. Raises ConfigError where they are missing or no address."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        missing = "MASTER_PORT" if host else "MASTER_ADDR"
        raise ConfigError(f"{missing} is not set: ranks started by hand need MASTER_ADDR and MASTER_PORT of rank 0")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"MASTER_PORT={port} is no port; choose a free one from 1024 to 65535")
    return host, int(port)


def _unreachable(env: RankEnv, host: str, port: int, timeout: timedelta, hosts: bool) -> str:
    if hosts:
        return f"cannot listen on port {port}, which another program may hold: set MASTER_PORT to a free one"
    return (
        f"rank 0 did not answer at {host}:{port} within {timeout.total_seconds():.0f} s: "
        f"was it started, and can rank {env.rank} reach that address?"
    )
