"""The key-value store through which ranks find each other before they can talk."""

from __future__ import annotations

import itertools
import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # not in its __all__

from gptoss_dist.errors import ConfigError, RankError
from gptoss_dist.launcher.env import RankEnv

_TORCHRUN_HOSTS_IT = "TORCHELASTIC_USE_AGENT_STORE"
_generation = itertools.count()


def join_store(env: RankEnv, timeout: timedelta) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT: torchrun's, or else one that rank 0 hosts.

    Keys of earlier calls in this process and of earlier restarts by torchrun are out of the way. Every rank must call
    it equally often. Raises ConfigError without an address, and RankError when the store cannot be hosted or reached.
    """
    host, port = master()
    hosts = env.rank == 0 and os.environ.get(_TORCHRUN_HOSTS_IT) != "True"
    try:
        store = TCPStore(host, port, is_master=hosts, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        raise RankError(_unreachable(env, host, port, timeout, hosts)) from error
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"gptoss_dist/{restart}/{next(_generation)}", store)


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
