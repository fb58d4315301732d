"""The one door to torch.distributed: start a process group, exchange small objects, end it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # not in its __all__

from gptoss_dist.errors import ConfigError, RankError, WorldSizeError
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.board import Board, open_board
from gptoss_dist.runtime.store import join_store
from gptoss_dist.schema.cluster import Device

T = TypeVar("T")

_FLIGHT_RECORDER_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""The name of torch 2.9 and later, and the one before, which is still read."""
_OBJECT_TIMEOUT = timedelta(days=30)
"""Ranks may wait for rank 0's next request for days; a death is noticed by `guard`, not by this."""
_sharing: list[RankGroup] = []
"""Of this process, over the process group that `start` made: the last of them to stop ends it."""


@dataclass(eq=False)
class RankGroup:
    """All ranks of the run, or a `part` of them, of which this is `rank`.

    One rank alone needs no process group and has none.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    object_group: dist.ProcessGroup | None = None
    """Over gloo also where tensors go through NCCL, so that objects never touch a GPU's stream; None for one rank."""
    board: Board | None = None
    """Faster than gloo, for ranks of one machine; it leaves long objects to gloo."""
    first: int = 0
    """The rank, among all of the run, that is rank 0 here."""
    _parts: list[RankGroup] = field(default_factory=list)

    def broadcast_object(self, value: T, src: int = 0) -> T:
        """What rank `src` passes, on every rank; the others' own `value` is ignored. Pickled: for small things."""
        if self.object_group is None:
            return value
        if self.board is not None:
            message = self.board.broadcast(pickle.dumps(value) if self.rank == src else None, src)
            if message is not None:
                found: T = pickle.loads(message)
                return found
        return self._broadcast(value, src)

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank. Pickled: for small things."""
        if self.object_group is None:
            return [value]
        if self.board is not None:
            messages = self.board.all_gather(pickle.dumps(value))
            if messages is not None:
                return [pickle.loads(message) for message in messages]
        return self._all_gather(value)

    def _broadcast(self, value: T, src: int = 0) -> T:
        """Through gloo."""
        values = [value]
        dist.broadcast_object_list(values, src=self.first + src, group=self.object_group)
        return values[0]

    def _all_gather(self, value: T) -> list[T]:
        """Through gloo."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.object_group)
        return values

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.object_group is not None:
            dist.barrier(group=self.object_group)

    def part(self, size: int) -> RankGroup:
        """Of the groups of `size` neighbours each, into which all ranks fall, this rank's. Collective.

        It ends with this one. All ranks together, or one alone, need no other process group.
        """
        if size == self.world_size:
            return self
        place = self.rank % size
        part = RankGroup(place, self.local_rank, size, self.device, first=self.first + self.rank - place)
        if size > 1:
            new_subgroups: Any = dist.new_subgroups  # untyped
            part.object_group, _ = new_subgroups(size, timeout=_OBJECT_TIMEOUT, backend="gloo")
            part.board = open_board(place, size, part._broadcast, part._all_gather, part.first)
        self._parts.append(part)
        return part

    def stop(self) -> None:
        """Wait for the others and end what `start` made, if nobody shares it any more; the second time do nothing."""
        if self.object_group is None:
            return
        self.barrier()  # a rank that closes early breaks a collective which others are still in
        for part in self._parts:
            part._end()
        self._parts.clear()
        self._end()

    def _end(self) -> None:
        if self.board is not None:
            self.board.close()
            self.board = None
        if self.object_group is not None:
            is_last = _sharing == [self]
            if self in _sharing:
                _sharing.remove(self)
            dist.destroy_process_group(None if is_last else self.object_group)  # None: all there are
            self.object_group = None


def record_no_flights() -> None:
    """Leave NCCL's flight recorder out, unless the user gave it a size.

    It gathers Python's stack at every sum: 38 µs of the host where 21 do without, 73 times a step (engine/NOTES.md). A
    rank that hangs is found by `runtime.watch`.
    """
    if not any(name in os.environ for name in _FLIGHT_RECORDER_SIZES):
        os.environ[_FLIGHT_RECORDER_SIZES[0]] = "0"


def start(
    device_type: Literal["cuda", "cpu"],
    env: RankEnv | None,
    *,
    store: Store | None = None,
    timeout: timedelta = timedelta(minutes=10),
) -> RankGroup:
    """Start NCCL on this rank's GPU, or gloo; a process group that is already there is used.

    One that somebody else made is left running, and one of `start` until nobody uses it any more: two models of one
    script may end in any order.

    `store` is the one of `guard`; without it the one at MASTER_ADDR and MASTER_PORT is joined. `timeout` bounds
    a collective on tensors. Raises RankError when there is no GPU for this rank, WorldSizeError when a process group
    that is already there has another size.
    """
    rank, local_rank, world_size = (env.rank, env.local_rank, env.world_size) if env else (0, 0, 1)
    device = device_of(device_type, env)
    group = RankGroup(rank, local_rank, world_size, device)
    if world_size == 1:
        return group
    if dist.is_initialized():
        if dist.get_world_size() != world_size:
            raise WorldSizeError(f"the process group has {dist.get_world_size()} ranks, the launcher {world_size}")
        if _sharing:
            _sharing.append(group)
    else:
        assert env is not None, "several ranks have rank variables"
        # A store of its own each time: torchrun's keeps the keys of a group that was started and ended before.
        store = join_store(env, timeout) if store is None else store
        if device_type == "cuda":
            record_no_flights()
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=device if device_type == "cuda" else None,
        )
        _sharing.clear()
        _sharing.append(group)
    group.object_group = dist.new_group(backend="gloo", timeout=_OBJECT_TIMEOUT)
    group.board = open_board(rank, world_size, group._broadcast, group._all_gather)
    return group


def device_type_of(wanted: Device) -> Literal["cuda", "cpu"]:
    """What `cluster.device` means here. Raises ConfigError for a GPU where torch sees none."""
    available = torch.cuda.is_available()
    if wanted is Device.cuda and not available:
        raise ConfigError("cluster.device=cuda: torch sees no GPU here. cluster.device=cpu runs on the CPU.")
    return "cpu" if wanted is Device.cpu or not available else "cuda"


def cuda_index(env: RankEnv | None, visible: int, environ: Mapping[str, str]) -> int:
    """Which of the `visible` GPUs this rank takes: its local rank's, or its only one where SLURM shows it no other.

    Raises RankError, naming both numbers, when there are fewer GPUs than ranks on this machine.
    """
    local_rank = env.local_rank if env else 0
    if local_rank < visible:
        return local_rank
    if env and env.source == "slurm" and visible == 1:
        on_node = environ.get("SLURM_GPUS_ON_NODE", "")
        if on_node.isdigit() and int(on_node) >= env.local_world_size:  # --gpus-per-task: each sees its own as number 0
            return 0
    seen = environ.get("CUDA_VISIBLE_DEVICES")
    raise RankError(
        f"LOCAL_RANK={local_rank} has no GPU: {visible} {'is' if visible == 1 else 'are'} visible on this machine"
        f"{f' (CUDA_VISIBLE_DEVICES={seen})' if seen is not None else ''}. "
        "Start at most one rank a GPU, make more GPUs visible, or run on the CPU"
    )


def device_of(device_type: Literal["cuda", "cpu"], env: RankEnv | None) -> torch.device:
    """This rank's device, made the current one. Raises RankError when there is no GPU for it."""
    if device_type == "cpu":
        return torch.device("cpu")
    index = cuda_index(env, torch.cuda.device_count(), os.environ)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
