from __future__ import annotations

import pytest

from gptoss_dist.kernels.experts_shapes import TILE, Shape, candidates, fewest_tokens, needs_list

SHARED_BYTES, REGISTERS = 227 << 10, 65536
"""Of a multiprocessor of compute capability 9.0."""


def test_a_list_is_needed_beyond_the_lanes_and_the_columns():
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 4)] == list(range(1, 9))
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 2)] == list(range(1, TILE + 1))
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 16)] == [1, 2]
    assert 3 in fewest_tokens(16, 128)


@pytest.mark.parametrize(("experts", "wide", "grouped"), [(128, 129, 385), (32, 33, 97)], ids=["120b", "20b"])
def test_shapes_follow_the_routes_of_an_expert(experts, wide, grouped):
    assert fewest_tokens(4, experts) == (1, 5, 9, wide, grouped)
    assert candidates(wide - 1, (wide - 1) * 4 / experts)[0].columns == TILE
    assert candidates(wide, wide * 4 / experts)[0].columns == 2 * TILE
    assert candidates(grouped, grouped * 4 / experts) == ()


def test_few_tokens_are_streamed_however_few_experts_there_are():
    assert candidates(TILE, float(TILE))[0].columns == TILE


def test_a_team_gives_every_warp_something():
    assert Shape(1, 1, 4, 4, 3, 4).team(90) == (4, 3)
    assert Shape(1, 2, 4, 4, 3, 4).team(11) == (2, 2)
    assert Shape(1, 1, 4, 4, 3, 4).team(1) == (1, 1)
    for groups in range(1, 91):
        team_warps, ahead = Shape(2, 1, 16, 2, 3, 1).team(groups)
        assert 16 % team_warps == 0
        assert team_warps * (ahead - 1) < (groups + 3) // 4


@pytest.mark.parametrize(("tokens", "routes_per_expert"), [(1, 0.1), (8, 0.3), (64, 2.0), (64, 8.0)])
def test_blocks_of_a_multiprocessor_fit_it(tokens, routes_per_expert):
    for shape in candidates(tokens, routes_per_expert):
        assert shape.blocks * (shape.shared_bytes(90, min(tokens, shape.columns)) + 1024) <= SHARED_BYTES + 1024
        assert shape.blocks * shape.warps <= 16
        assert shape.team_warps in (1, 2, 4, 8)


def test_the_name_in_c_plus_plus():
    found = Shape(2, 1, 16, 4, 3, 1).instance(90, 12, True)
    assert found == "experts_stream<90, 12, 2, 1, 16, 4, 2, 3, 2, 1, true>"
