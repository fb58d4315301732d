"""The kernels' own code, run by Triton's interpreter on the CPU, against the plain-torch reference in float64.

The interpreter must be chosen before Triton is imported, so this file runs itself in a process of its own, once for
each test: `python test_experts_triton.py NAME SEED`. bfloat16 is for a GPU (`tests/gpu`): `tl.dot` of it is wrong
there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3}
"""‖found − wanted‖ / ‖wanted‖: float32 sums of a few hundred products; inner activations rounded to float16 (2^-11)."""


class Case:
    """Random experts and what each way of running them makes of random tokens."""

    def __init__(self, seed, experts=5, hidden=96, groups=3, high_scale=125):
        self.generator = torch.Generator().manual_seed(seed)
        self.experts, self.hidden = experts, hidden
        self.plain = self._experts(groups, high_scale)
        self.packed = self._installed(self.plain)

    def _bytes(self, low, high, *shape):
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=self.generator)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def _experts(self, groups, high_scale):
        from gptoss_dist.kernels.packed import PackedExperts

        experts, hidden = self.experts, self.hidden
        return PackedExperts(
            self._bytes(0, 256, experts, groups, 64, hidden // 32, 16),
            self._bytes(118, high_scale, experts, groups, 64, hidden // 32),
            self.normal(experts, groups, 64),
            self._bytes(0, 256, experts, hidden, groups, 16),
            self._bytes(118, high_scale, experts, hidden, groups),
            self.normal(experts, hidden),
            1.702,
            7.0,
        )

    def _installed(self, plain):
        from gptoss_dist.kernels import experts_triton

        module = SimpleNamespace(
            gate_up_proj_blocks=plain.gate_up_blocks.clone(),
            gate_up_proj_scales=plain.gate_up_scales.clone(),
            down_proj_blocks=plain.down_blocks.clone(),
            down_proj_scales=plain.down_scales.clone(),
            interleaved=False,
        )
        experts_triton.install(module)
        assert module.kernel is experts_triton.experts_forward
        assert module.rows_kernel is experts_triton.expert_rows
        experts_triton.install(module)  # again: nothing changes
        return replace(
            plain,
            gate_up_blocks=module.gate_up_proj_blocks,
            gate_up_scales=module.gate_up_proj_scales,
            down_blocks=module.down_proj_blocks,
            down_scales=module.down_proj_scales,
            interleaved=module.interleaved,
        )

    def index(self, tokens, top_k, low=0, high=None):
        """Distinct experts for each token, as a router gives them; from `low` to `high`, so some lie elsewhere."""
        high = self.experts if high is None else high
        keys = torch.rand(tokens, high - low, generator=self.generator)
        return keys.argsort(dim=1)[:, :top_k] + low

    def check(self, index_TK, dtype=torch.float32, tiles=None):
        from gptoss_dist.kernels import experts_reference, experts_triton

        hidden_TH = self.normal(len(index_TK), self.hidden).to(dtype)
        weight_TK = torch.rand(index_TK.shape, generator=self.generator)
        with poisoned():
            found = experts_triton.experts_forward(hidden_TH, index_TK, weight_TK, self.packed, tiles)
        wanted = experts_reference.experts_forward(hidden_TH.double(), index_TK, weight_TK.double(), self.plain)
        assert found.dtype == dtype
        assert found.shape == hidden_TH.shape
        error = ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
        assert error < BOUNDS[dtype], (error, dtype, tiles, index_TK)
        return found


class poisoned:  # noqa: N801
    """Whatever is allocated holds NaN, or a number that no route or expert has, until it is written."""

    def __enter__(self):
        self.empty, self.empty_like = torch.empty, torch.empty_like
        torch.empty = lambda *shape, **options: self.poison(self.empty(*shape, **options))
        torch.empty_like = lambda other, **options: self.poison(self.empty_like(other, **options))

    def __exit__(self, *_):
        torch.empty, torch.empty_like = self.empty, self.empty_like

    @staticmethod
    def poison(tensor):
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 1 << 30)


def batched(late=False, columns=8, rows=32):
    from gptoss_dist.kernels.experts_tiles import Tile, Tiles

    return Tiles(Tile(rows, columns, 2, 4, 3, True), Tile(32, columns, 4, 4, 3, True, late_scale=late))


def grouped(columns=16):
    from gptoss_dist.kernels.experts_tiles import Tile, Tiles

    return Tiles(Tile(64, columns, 2, 4, 3, False), Tile(32, columns, 4, 4, 3, False))


def case_one_token(seed):
    case = Case(seed, hidden=64, groups=1)
    for dtype in BOUNDS:
        case.check(case.index(1, 4), dtype)
        case.check(case.index(1, 4), dtype, batched())
        case.check(case.index(1, 4, -2, 7).int(), dtype, batched(late=True))


def case_few_tokens(seed):
    # 8 tokens × 2 routes: every expert has several routes; ids from -1 to 5 of experts 0 to 4
    case = Case(seed, hidden=64, groups=1)
    for dtype in BOUNDS:
        case.check(case.index(8, 2, -1, 6), dtype)
        case.check(case.index(8, 2), dtype, batched(late=True, rows=64))


def case_listed(seed):
    # 20 tokens × 2 routes: more than programs look through by themselves
    case = Case(seed, hidden=64, groups=2)
    for dtype in BOUNDS:
        case.check(case.index(20, 2, -1, 6), dtype, batched())


def case_many(seed):
    case = Case(seed, hidden=160, groups=3)
    for dtype in BOUNDS:
        case.check(case.index(40, 2, -1, 6).int(), dtype, grouped())
    case.check(case.index(3, 2), torch.float32, grouped())  # many-token tiles without a list


def ladder():
    from gptoss_dist.kernels.experts_tiles import Tile, Tiles

    return Tiles(
        Tile(64, 64, 2, 4, 3, False, narrower=(16, 32), by_expert=True),
        Tile(32, 64, 4, 4, 3, False, narrower=(16, 32)),
    )


def case_ladder(seed):
    # routes on, below and above each width, and of more than one tile; then by chance, with routes of other ranks
    case = Case(seed, hidden=96, groups=3)
    counts = torch.tensor([1, 16, 17, 32, 33, 64, 65, 81, 97, 130])
    for part in (counts[:5], counts[5:]):
        index = torch.repeat_interleave(torch.arange(len(part)), part)
        case.check(index[torch.randperm(len(index), generator=case.generator)][:, None], tiles=ladder())
    for dtype in BOUNDS:
        case.check(case.index(60, 3, -1, 6), dtype, ladder())


def case_uneven_shards(seed):
    # 23, 21 and 11 groups: what ranks get of 90 over 4 and over 8
    for groups in (23, 21, 11):
        case = Case(seed, experts=2, hidden=64, groups=groups)
        case.check(torch.arange(80)[:, None] // 41, tiles=ladder())


def case_shards(seed):
    # the 5 groups of a layer over 2 ranks, 3 + 2: down's bias belongs to the first rank, as the parallel style has it
    case = Case(seed, hidden=64, groups=5)
    from gptoss_dist.kernels import experts_reference, experts_triton

    index, hidden = case.index(6, 2), case.normal(6, 64)
    weight, total = torch.rand(6, 2, generator=case.generator), 0
    for groups, bias in ((slice(0, 3), case.plain.down_bias), (slice(3, 5), torch.zeros_like(case.plain.down_bias))):
        shard = replace(
            case.plain,
            gate_up_blocks=case.plain.gate_up_blocks[:, groups].contiguous(),
            gate_up_scales=case.plain.gate_up_scales[:, groups].contiguous(),
            gate_up_bias=case.plain.gate_up_bias[:, groups].contiguous(),
            down_blocks=case.plain.down_blocks[:, :, groups].contiguous(),
            down_scales=case.plain.down_scales[:, :, groups].contiguous(),
            down_bias=bias,
        )
        total = total + experts_triton.experts_forward(hidden, index, weight, case._installed(shard))
    wanted = experts_reference.experts_forward(hidden.double(), index, weight.double(), case.plain)
    assert (total - wanted).norm() / wanted.norm() < BOUNDS[torch.float32]


def case_one_expert_takes_all(seed):
    # more routes than a tile has columns: with and without a list, and twice the same expert in one token
    case = Case(seed, hidden=32, groups=1)
    case.check(torch.full((11, 1), 3), tiles=batched())
    case.check(torch.full((14, 2), 3), tiles=batched())
    case.check(torch.full((37, 1), 4), tiles=batched())
    case.check(torch.full((37, 1), 0), tiles=grouped())


def case_nothing_here(seed):
    case = Case(seed, hidden=32, groups=1)
    for tokens, tiles in ((1, None), (40, batched()), (40, grouped())):
        index = torch.full((tokens, 2), case.experts)
        index[:, 1] = -1
        assert not case.check(index, tiles=tiles).any()


def case_no_tokens(seed):
    case = Case(seed, hidden=32, groups=1)
    assert case.check(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 32)


def case_extreme_values(seed):
    # scales from 2^-126 to 2^1, the largest that can be laid out
    case = Case(seed, hidden=64, groups=2, high_scale=129)
    case.plain.gate_up_scales.view(-1)[:32] = 1
    case.plain.down_scales.view(-1)[:32] = 1
    case.packed = case._installed(case.plain)
    for tiles in (batched(), batched(late=True), grouped()):
        case.check(case.index(3, 2), torch.float32, tiles)


def case_no_number(seed):
    # a NaN stays one, through both clamps, and touches no other token
    from gptoss_dist.kernels import experts_triton

    case = Case(seed, hidden=64, groups=2)
    hidden, index = case.normal(3, 64), case.index(3, 2)
    hidden[1, 5] = torch.nan
    for tiles in (batched(), grouped()):
        found = experts_triton.experts_forward(hidden, index, torch.ones(3, 2), case.packed, tiles)
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


def case_rows(seed):
    # each route's own, with and without a list, and their sum; those of other ranks hold anything
    from gptoss_dist.kernels import experts_reference, experts_triton

    case = Case(seed, hidden=64, groups=2)
    for tokens, tiles in ((2, None), (37, batched()), (37, grouped())):
        hidden, index = case.normal(tokens, 64), case.index(tokens, 2, low=-1)
        weight = torch.rand(tokens, 2, generator=case.generator)
        with poisoned():
            rows = experts_triton.expert_rows(hidden, index, weight, case.packed, tiles)
            whole = experts_triton.experts_forward(hidden, index, weight, case.packed, tiles)
        assert (rows.dtype, rows.shape) == (torch.float32, (2 * tokens, 64))
        apart = (hidden.double().repeat_interleave(2, dim=0), index.view(-1, 1), weight.double().view(-1, 1))
        wanted = experts_reference.experts_forward(*apart, case.plain)
        here = (index >= 0).view(-1, 1)
        rows = torch.where(here, rows, 0)
        assert (rows - wanted).norm() / wanted.norm() < BOUNDS[torch.float32]
        assert torch.equal(rows.view(tokens, 2, 64).sum(dim=1), whole)
    assert experts_triton.expert_rows(hidden[:0], index[:0], weight[:0], case.packed).shape == (0, 64)


def case_rounded_rows(seed):
    # of many tokens each route's row is rounded before a token's rows are summed
    from gptoss_dist.kernels import experts_triton

    case = Case(seed, hidden=64, groups=2)
    above, experts_triton.ROUNDED_ABOVE = experts_triton.ROUNDED_ABOVE, 36
    try:
        index = case.index(37, 2, low=-1)
        for dtype in (torch.float16, torch.float32):
            hidden = case.normal(37, 64).to(dtype)
            weight = torch.rand(37, 2, generator=case.generator)
            rows = experts_triton.expert_rows(hidden, index, weight, case.packed, grouped())
            assert rows.dtype == dtype
            whole = experts_triton.experts_forward(hidden, index, weight, case.packed, grouped())
            rows = torch.where((index >= 0).view(-1, 1), rows, 0).float()
            assert torch.equal(rows.view(37, 2, 64).sum(dim=1).to(dtype), whole)
            case.check(index, dtype, grouped())
    finally:
        experts_triton.ROUNDED_ABOVE = above


def case_same_bits(seed):
    # a token's result does not depend on the tokens beside it, nor on the run, as long as the tiles are the same
    case = Case(seed, hidden=64, groups=1)
    from gptoss_dist.kernels import experts_triton

    hidden, index, weight = case.normal(6, 64), case.index(6, 2), torch.rand(6, 2, generator=case.generator)
    whole = experts_triton.experts_forward(hidden, index, weight, case.packed)
    assert torch.equal(whole, experts_triton.experts_forward(hidden, index, weight, case.packed))
    order = torch.randperm(6, generator=case.generator)
    shuffled = experts_triton.experts_forward(hidden[order], index[order], weight[order], case.packed)
    assert torch.equal(shuffled, whole[order])


def case_not_laid_out(seed):
    from gptoss_dist.errors import KernelError
    from gptoss_dist.kernels import experts_triton

    case = Case(seed, hidden=32, groups=1)
    with pytest.raises(KernelError, match=r"experts_triton\.install"):
        experts_triton.experts_forward(case.normal(1, 32), case.index(1, 1), torch.ones(1, 1), case.plain)


def case_routes(seed):
    from gptoss_dist.kernels.experts_routes import group_routes, most_tiles

    generator = torch.Generator().manual_seed(seed)
    # up to 512 routes are compared in pairs, more are counted by blocks of 128
    cases = ((70, 5, 8), (33, 20, 16), (1, 1, 8), (64, 3, 16), (513, 16, 64), (9000, 3, 256))
    # tiles of equal size, rounded up to a unit
    for routes, experts, columns, *unit in (*cases, (70, 3, 16, 4), (1000, 7, 64, 32), (513, 16, 128, 32)):
        index = torch.randint(-2, experts + 2, (routes,), generator=generator)
        with poisoned():
            found = group_routes(index, experts, columns, *unit)
        seen, sizes = [], {}
        assert len(found.expert_S) == most_tiles(routes, experts, columns)
        for expert, first, count in zip(found.expert_S, found.first_S, found.count_S, strict=True):
            if expert == -1:
                continue
            assert 1 <= count <= columns
            members = found.order_P[first : first + count].long()
            assert (index[members] == expert).all()
            assert members.tolist() == sorted(members.tolist())
            seen += members.tolist()
            sizes.setdefault(int(expert), []).append(int(count))
        for own in sizes.values():
            assert len(own) == -(-sum(own) // columns)
            assert len({*own[:-1]}) <= 1
            if unit and len(own) > 1:
                assert own[0] % unit[0] == 0
                assert own[0] - own[-1] < len(own) * unit[0]
        assert sorted(seen) == torch.where((index >= 0) & (index < experts))[0].tolist()
        if routes <= 512:
            assert sorted(found.order_P.tolist()) == list(range(routes))


CASES = {name.removeprefix("case_"): value for name, value in list(globals().items()) if name.startswith("case_")}
BATCHES = [
    ["one_token", "rows", "rounded_rows", "nothing_here", "no_tokens", "not_laid_out"],
    ["few_tokens", "same_bits", "shards"],
    ["listed", "many", "one_expert_takes_all"],
    ["extreme_values", "no_number", "routes"],
    ["ladder", "uneven_shards"],
]


@pytest.mark.parametrize("names", BATCHES, ids=lambda names: "+".join(names))
def test_the_kernels_compute_what_the_reference_computes(names):
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(time.time_ns() % 2**31), *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_case_is_run():
    assert sorted(name for names in BATCHES for name in names) == sorted(CASES)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(f"{name}, seed {sys.argv[1]}", flush=True)
        start = time.perf_counter()
        CASES[name](int(sys.argv[1]))
        print(f"{time.perf_counter() - start:.1f} s")
