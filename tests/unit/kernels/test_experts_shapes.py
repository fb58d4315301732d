from __future__ import annotations

import pytest

from gptoss_dist.kernels.experts_shapes import COLUMNS, MOST_TOKENS, Shape, candidates, fewest_tokens, needs_list

SHARED_BYTES, REGISTERS = 227 << 10, 65536
"""Of a multiprocessor of compute capability 9.0."""


def test_a_list_is_needed_beyond_the_lanes_and_the_columns():
    assert fewest_tokens(4) == (1, 5, 9, 17, MOST_TOKENS + 1)
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 4)] == list(range(1, 9))
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 2)] == list(range(1, COLUMNS + 1))
    assert [tokens for tokens in range(1, 20) if not needs_list(tokens, 16)] == [1, 2]
    assert 3 in fewest_tokens(16)


def test_a_cut_gives_every_warp_something():
    assert Shape(1, 4, 4, 3, 4).cut(90) == (1, 4, 4, 3)
    assert Shape(1, 4, 4, 3, 4).cut(11) == (1, 4, 2, 2)
    assert Shape(1, 4, 4, 3, 4).cut(1) == (1, 4, 1, 1)
    for groups in range(1, 91):
        _, warps, team_warps, ahead = Shape(2, 16, 2, 3, 1).cut(groups)
        assert warps % team_warps == 0
        assert team_warps * (ahead - 1) < (groups + 3) // 4


@pytest.mark.parametrize("tokens", [1, 8, 64])
def test_blocks_of_a_multiprocessor_fit_it(tokens):
    for shape in (shape for shapes in candidates(tokens) for shape in (shapes.gate_up, shapes.down)):
        assert shape.blocks * (shape.shared_bytes(90, min(tokens, COLUMNS)) + 1024) <= SHARED_BYTES + 1024
        assert shape.blocks * shape.warps <= 16
        assert shape.team_warps in (1, 2, 4, 8)


def test_the_name_in_c_plus_plus():
    assert Shape(2, 16, 2, 3, 1).instance("down", 23, True) == "down_stream<23, 2, 16, 2, 3, 1, true>"
