from __future__ import annotations

import pytest

from gptoss_dist.engine.page_needs import ample_sliding_pages, needed_pages, window_pages


def test_a_request_needs_all_its_full_pages_and_of_the_sliding_ones_a_window():
    assert needed_pages(40, window=8, page_size=4) == (10, 3)
    assert needed_pages(41, window=8, page_size=4) == (11, 3)
    assert needed_pages(5, window=8, page_size=4) == (2, 2)


@pytest.mark.parametrize("page_size", [1, 2, 5, 16])
@pytest.mark.parametrize("window", [1, 2, 7, 16, 17, 128])
def test_window_pages_is_the_worst_alignment(window: int, page_size: int):
    most = max(
        len({position // page_size for position in range(end - window, end)})
        for end in range(1000, 1000 + 2 * page_size)
    )
    assert window_pages(window, page_size) == most


@pytest.mark.parametrize(("window", "page_size", "chunks"), [(5, 4, [1, 9, 2, 2]), (16, 4, [2] * 8), (3, 2, [30, 1])])
def test_ample_sliding_pages_are_enough_at_every_alignment(window: int, page_size: int, chunks: list[int]):
    def worst(count: int) -> int:
        starts = range(1000, 1000 + page_size)
        return max(len({at // page_size for at in range(start - window + 1, start + count)}) for start in starts)

    assert sum(map(worst, chunks)) <= ample_sliding_pages(window, page_size, sum(chunks), len(chunks))
