from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from runtime_ranks import Ranks

from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.errors import RankError
from gptoss_dist.kernels.all_reduce_reference import ProcessGroupReducer
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.agree import TokenFingerprint, check_agreement, together, versions
from gptoss_dist.runtime.board import SLOT_BYTES
from gptoss_dist.runtime.dist import RankGroup, start
from gptoss_dist.runtime.mesh import make_ranks
from gptoss_dist.runtime.watch import Watch

pytestmark = pytest.mark.multi


def exchange_objects(watch: Watch, group: RankGroup) -> None:
    assert group.broadcast_object({"from": group.rank}) == {"from": 0}
    assert group.broadcast_object({"from": group.rank}, src=2) == {"from": 2}
    assert group.all_gather_object(str(group.rank)) == ["0", "1", "2"]
    assert group.board is not None
    long = "x" * (SLOT_BYTES + 1)  # leaves the shared memory for gloo
    assert group.broadcast_object(long if group.rank == 1 else "", src=1) == long
    assert group.all_gather_object(long if group.rank == 1 else "short") == ["short", long, "short"]
    assert group.all_gather_object(group.rank) == [0, 1, 2]
    group.barrier()


def adopt(watch: Watch, group: RankGroup) -> None:
    adopted = start("cpu", read_rank_env(os.environ))
    assert adopted.all_gather_object(group.rank) == [0, 1, 2]
    objects = adopted.object_group
    adopted.stop()
    with pytest.raises(ValueError, match="not registered"):
        dist.get_global_rank(objects, 0)
    assert group.all_gather_object(group.rank) == [0, 1, 2], "what it found is left as it was"
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 3
    later = start("cpu", read_rank_env(os.environ))
    group.stop()
    later.barrier()  # who made it went first
    later.stop()
    assert not dist.is_initialized()


def succeed_together(watch: Watch, group: RankGroup) -> None:
    assert together(group, lambda: group.rank) == group.rank

    def act() -> torch.Tensor:
        device = torch.device("cuda" if group.rank == 1 else "cpu")
        return symmetric.empty((1,), device=device) if group.rank else torch.empty(1, device=device)

    with pytest.raises(RankError, match=r"^rank 1: .*SymmetricMemory .*cuda"):
        together(group, act)  # what fails on ranks 1 and 2 succeeds on rank 0
    assert group.all_gather_object(group.rank) == [0, 1, 2]


def take_the_fallback(watch: Watch, group: RankGroup) -> None:
    """GPUs are asked for where there are none: a local failure, on which all agree."""
    here = torch.device("cuda", group.rank)
    sums = choose_reducer(step_kernels("triton"), group, dist.group.WORLD, 4, 8, torch.bfloat16, here)
    assert isinstance(sums.reducer, ProcessGroupReducer)
    assert sums.reason.startswith("sums over ranks through gloo (the ranks cannot map each other's memory (rank 0: ")
    assert group.all_gather_object(sums.reason) == [sums.reason] * 3


def agree(watch: Watch, group: RankGroup) -> None:
    check_agreement(group, "the configuration", "sha256:1234", "Start all ranks with the same words.")
    check_agreement(group, "a package version", versions(), "Install the same environment everywhere.")
    tokens = TokenFingerprint(range(3))
    tokens.update([1, 2])
    tokens.check(group)


def differ_in_configuration(watch: Watch, group: RankGroup) -> None:
    digest = "bbbb" if group.rank == 1 else "aaaa"
    check_agreement(group, "the configuration", digest, "Start all ranks with the same words.")


def differ_in_versions(watch: Watch, group: RankGroup) -> None:
    mine = {"torch": "2.13.0", "transformers": "5.23.0"}
    if group.rank == 2:
        mine = {"torch": "2.13.0", "transformers": "5.22.2", "kernels": "0.18.2"}
    check_agreement(group, "a package version", mine, "Install the same environment everywhere.")


def differ_in_tokens(watch: Watch, group: RankGroup) -> None:
    tokens = TokenFingerprint(range(3))
    for step in range(8):
        tokens.update([100 + step, 7 if (group.rank, step) == (1, 5) else 3])
        if step % 4 == 3:
            tokens.check(group)
            Path(f"checked-{group.rank}-{step}").touch()


def lay_out_2_by_2(watch: Watch, group: RankGroup) -> None:
    ranks = make_ranks(group, dp=2, tp=2)
    assert ranks.mesh is not None
    assert ranks.mesh.mesh_dim_names == ("dp", "tp")
    assert (ranks.dp_rank, ranks.tp_rank) == [(0, 0), (0, 1), (1, 0), (1, 1)][group.rank]
    assert ranks.leads_replica == (group.rank in (0, 2))
    within = torch.tensor([10**group.rank])
    dist.all_reduce(within, group=ranks.tp_group)
    assert within.item() == [11, 11, 1100, 1100][group.rank]


def part_in_pairs(watch: Watch, group: RankGroup) -> None:
    assert group.part(4) is group
    alone = group.part(1)
    assert (alone.rank, alone.world_size, alone.first) == (0, 1, group.rank)
    assert alone.all_gather_object(group.rank) == [group.rank]
    pair = group.part(2)
    first = group.rank // 2 * 2
    assert (pair.rank, pair.world_size, pair.first) == (group.rank % 2, 2, first)
    board = pair.board
    assert board is not None
    for pair.board in (board, None):
        assert pair.all_gather_object(group.rank) == [first, first + 1]
        assert pair.broadcast_object(group.rank) == first
        assert pair.broadcast_object(group.rank, src=1) == first + 1
    pair.board = board
    if group.rank < 2:  # the others have nothing to do with it
        assert [pair.broadcast_object(number * (1 - group.rank)) for number in range(20)] == list(range(20))
    tokens = TokenFingerprint(range(first, first + 2))
    tokens.update([1, 2, first])
    tokens.check(pair)
    tokens.update([group.rank if first else 0])
    if first:
        with pytest.raises(RankError, match=r"^ranks generate different tokens: rank 3 has .*; rank 2 has "):
            tokens.check(pair)


def lay_out_wrongly(watch: Watch, group: RankGroup) -> None:
    make_ranks(group, dp=2, tp=2)


@pytest.mark.parametrize("body", [exchange_objects, adopt, succeed_together, take_the_fallback, agree])
def test_three_ranks(tmp_path: Path, body):
    ranks = Ranks(3, body, tmp_path)
    assert ranks.statuses() == [0, 0, 0], ranks.printed()
    assert ranks.printed() == ""


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ranks_that_meet_at_an_ipv6_address(tmp_path: Path):
    ranks = Ranks(3, agree, tmp_path, address="::1")
    assert ranks.statuses() == [0, 0, 0], ranks.printed()
    assert ranks.printed() == ""


def test_a_rank_with_another_configuration_is_named(tmp_path: Path):
    ranks = Ranks(3, differ_in_configuration, tmp_path)
    assert ranks.statuses() == [1, 1, 1]
    assert ranks.printed()[len("rank 0") :] == (
        ": the configuration differs between ranks: rank 1 has bbbb; ranks 0, 2 have aaaa. "
        "Start all ranks with the same words.\n"
    )


def test_in_a_tie_rank_0_is_right(tmp_path: Path):
    ranks = Ranks(2, differ_in_configuration, tmp_path)
    assert ranks.statuses() == [1, 1]
    assert "between ranks: rank 1 has bbbb; rank 0 has aaaa." in ranks.printed()


def test_only_the_packages_that_differ_are_named(tmp_path: Path):
    ranks = Ranks(3, differ_in_versions, tmp_path)
    assert ranks.statuses() == [1, 1, 1]
    assert ranks.printed()[len("rank 0") :] == (
        ": a package version differs between ranks: kernels: rank 2 has 0.18.2; ranks 0, 1 have absent; "
        "transformers: rank 2 has 5.22.2; ranks 0, 1 have 5.23.0. Install the same environment everywhere.\n"
    )


def test_a_rank_with_other_tokens_is_named_at_the_next_check(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranks = Ranks(3, differ_in_tokens, tmp_path)
    assert ranks.statuses() == [1, 1, 1]
    assert ranks.printed().count("ranks generate different tokens: rank 1 has 16 tokens, ") == 1
    assert "; ranks 0, 2 have 16 tokens, " in ranks.printed()
    assert sorted(path.name for path in tmp_path.glob("checked-*")) == ["checked-0-3", "checked-1-3", "checked-2-3"]


def test_two_replicas_of_two_shards(tmp_path: Path):
    ranks = Ranks(4, lay_out_2_by_2, tmp_path)
    assert ranks.statuses() == [0, 0, 0, 0], ranks.printed()
    assert ranks.printed() == ""


def test_pairs_exchange_among_themselves(tmp_path: Path):
    ranks = Ranks(4, part_in_pairs, tmp_path)
    assert ranks.statuses() == [0, 0, 0, 0], ranks.printed()
    assert ranks.printed() == ""


def test_degrees_that_do_not_make_the_number_of_ranks(tmp_path: Path):
    ranks = Ranks(3, lay_out_wrongly, tmp_path)
    assert ranks.statuses() == [2, 2, 2]
    assert ranks.printed()[len("rank 0") :] == ": dp=2 × tp=2 needs 4 ranks, and 3 were started\n"
