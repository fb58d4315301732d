"""Where a rank stands in the grid of replicas (dp) and of shards inside a replica (tp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gptoss_dist.errors import WorldSizeError
from gptoss_dist.runtime.dist import RankGroup


@dataclass(frozen=True)
class Ranks:
    """This rank's place: `rank = dp_rank * tp + tp_rank`; a replica's ranks are neighbours, so share a machine."""

    dp: int
    tp: int
    dp_rank: int
    tp_rank: int
    mesh: DeviceMesh | None
    """Axes ("dp", "tp"); None for one rank alone."""

    @property
    def tp_group(self) -> dist.ProcessGroup | None:
        """The ranks of this replica; None for one rank alone."""
        return self.mesh.get_group("tp") if self.mesh is not None else None

    @property
    def leads_replica(self) -> bool:
        """Whether this is the first rank of its replica."""
        return self.tp_rank == 0


def place(rank: int, tp: int) -> tuple[int, int]:
    """(dp_rank, tp_rank) of a rank."""
    return divmod(rank, tp)


def make_ranks(group: RankGroup, *, dp: int, tp: int) -> Ranks:
    """Lay the ranks of `group` out as dp × tp; every rank must call it.

    Raises WorldSizeError when the product is not the number of ranks.
    """
    if dp * tp != group.world_size:
        raise WorldSizeError(f"dp={dp} × tp={tp} needs {dp * tp} ranks, and {group.world_size} were started")
    dp_rank, tp_rank = place(group.rank, tp)
    if group.world_size == 1:
        return Ranks(dp, tp, dp_rank, tp_rank, mesh=None)
    device_type: Literal["cuda", "cpu"] = "cuda" if group.device.type == "cuda" else "cpu"
    mesh = init_device_mesh(device_type, (dp, tp), mesh_dim_names=("dp", "tp"))
    return Ranks(dp, tp, dp_rank, tp_rank, mesh)
