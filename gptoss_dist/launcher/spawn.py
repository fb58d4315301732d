"""Starting the ranks on this machine through torchrun's own API, for a command typed without a launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from gptoss_dist.collector import uncollected
from gptoss_dist.launcher.command import MODULE, shell_text, torchrun_command


def spawn_ranks(world_size: int, words: Sequence[str]) -> int:
    """Run `python -m gptoss_dist WORDS` as `world_size` ranks and return the exit status of the whole.

    Says the equivalent torchrun command on standard error first. The status is 0, the failing rank's own, or 128 plus
    the signal that stopped the run. The ranks have said what went wrong; only a rank that could not is named here.
    """
    print(f"+ {shell_text(torchrun_command(world_size, words))}", file=sys.stderr, flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(world_size)))
    return run_ranks(world_size, [sys.executable, "-m", MODULE, *words])


def threads_per_rank(world_size: int) -> int:
    """This process' cores shared among the ranks, at least one each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // world_size)


def run_ranks(world_size: int, argv: Sequence[str]) -> int:
    """Run any command as `world_size` ranks of this machine, as torchrun would; its exit status."""
    with uncollected():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    _silence_torchrun()
    try:
        elastic_launch(config, argv[0])(*argv[1:])
    except ChildFailedError as error:
        return _status({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def _silence_torchrun() -> None:
    """torchrun logs the death of every rank beside the error that the failing rank has just said."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _status(exit_codes: dict[int, int]) -> int:
    """One status for all, from each failed rank's (negative: the signal that ended it), first failure first.

    torchrun ends the remaining ranks by SIGTERM, so that status counts only where there is no other.
    """
    told = (128 + signal.SIGTERM, -signal.SIGTERM)
    causes = {rank: code for rank, code in exit_codes.items() if code not in told}
    if not causes:
        return 128 + signal.SIGTERM
    said = [code for code in causes.values() if code > 0]
    if said:
        return said[0]
    rank, code = next(iter(causes.items()))
    print(f"rank {rank}: ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return 1
