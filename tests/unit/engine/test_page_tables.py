from __future__ import annotations

import pytest

from gptoss_dist.engine.page_needs import window_pages
from gptoss_dist.engine.page_tables import PageTables, Prefix
from gptoss_dist.engine.pages import PageAccountError, PagePool, key_of
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.sequence import Sequence

PAGE = 4


def sequence_of(tokens: int, max_tokens: int = 3, first: int = 0) -> Sequence:
    return Sequence(Request("a", tuple(range(first, first + tokens)), Sampling(max_tokens)), 0)


def tables(window: int, full: int = 32, sliding: int = 32) -> PageTables:
    return PageTables(PagePool(full, PAGE), PagePool(sliding, PAGE), window)


def compute(tables: PageTables, sequence: Sequence, count: int) -> None:
    tables.grow(sequence, sequence.computed + count)
    tables.advance(sequence, count)


def shape(sequence: Sequence) -> str:
    """The sliding table: x for a page that is held, - for one that is gone."""
    return "".join("x" if page >= 0 else "-" for page in sequence.sliding_table)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 11, 128])
def test_a_sliding_table_covers_the_window_and_nothing_before(window: int):
    sequence, both = sequence_of(60), tables(window)
    for position in range(60):
        both.grow(sequence, position + 1)
        seen = {index // PAGE for index in range(60) if position - window < index <= position}
        held = {index for index, page in enumerate(sequence.sliding_table) if page >= 0}
        assert held == seen, "while the token is computed"
        assert len(held) <= window_pages(window, PAGE)
        both.advance(sequence, 1)
        assert both.sliding.held == sum(page >= 0 for page in sequence.sliding_table)
        assert both.full.held == len(sequence.full_table) == position // PAGE + 1


def test_a_chunk_holds_the_windows_of_all_its_queries_and_lets_go_afterwards():
    sequence, both = sequence_of(40), tables(window=6)
    both.grow(sequence, 20)
    assert shape(sequence) == "xxxxx"
    both.advance(sequence, 20)
    assert shape(sequence) == "---xx", "the query at 20 sees from 15"
    both.grow(sequence, 31)
    assert shape(sequence) == "---xxxxx"
    both.advance(sequence, 11)
    assert shape(sequence) == "------xx"


def test_room_is_what_the_scarcer_pool_allows():
    sequence, both = sequence_of(40), tables(window=40, full=9, sliding=3)
    assert both.room(sequence) == 12
    compute(both, sequence, 5)
    assert both.room(sequence) == 7
    both.sliding.allocate(1)
    assert both.room(sequence) == 3


def test_a_dropped_sequence_is_found_again_but_for_its_last_token():
    both, sequence = tables(window=6), sequence_of(16)
    compute(both, sequence, 16)
    full = list(sequence.full_table)
    assert shape(sequence) == "--xx"
    both.drop(sequence)
    assert (both.full.held, both.sliding.held, sequence.computed) == (0, 0, 0)
    prefix = both.find(sequence)
    assert prefix.full == full[:3]
    assert prefix.sliding == [both.sliding.lookup(sequence.page_key(index, PAGE)) for index in (1, 2)]
    both.adopt(sequence, prefix)
    assert (sequence.computed, sequence.reused, shape(sequence)) == (12, 12, "-xx")
    both.full.check(dict.fromkeys(sequence.full_table, 1))
    both.sliding.check(dict.fromkeys(sequence.sliding_table[1:], 1))


def test_a_prefix_ends_where_the_tokens_differ():
    both, sequence = tables(window=6), sequence_of(32)
    compute(both, sequence, 32)
    other = sequence_of(32)
    other.tokens[13] = 99
    assert len(both.find(other).full) == 3
    other.tokens[2] = 99
    assert both.find(sequence_of(20, first=1)) == Prefix([], [])


def evict(pool: PagePool, key: bytes) -> None:
    """Take all free pages and the cached ones until this key is gone; then give back all but its page."""
    page, taken = pool.lookup(key), []
    while pool.lookup(key) is not None:
        taken += pool.allocate(1)
    for one in taken:
        if one != page:
            pool.release(one)


def test_a_prefix_needs_the_sliding_pages_of_its_window_and_no_others():
    both, sequence = tables(window=6), sequence_of(33)
    compute(both, sequence, 33)
    both.drop(sequence)
    assert len(both.find(sequence).full) == 8
    keys = [sequence.page_key(index, PAGE) for index in range(8)]
    evict(both.sliding, keys[0])  # of the least recently used page: all others stay
    assert [both.sliding.lookup(key) is None for key in keys] == [True] + [False] * 7
    assert len(both.find(sequence).full) == 8
    assert len(both.find(sequence_of(9)).full) == 0, "8 tokens need both of their pages: position 8 sees from 3"
    assert len(both.find(sequence_of(13)).full) == 3, "position 12 sees from 7"


def test_without_a_full_page_nothing_behind_it_is_reused():
    both, sequence = tables(window=6), sequence_of(33)
    compute(both, sequence, 33)
    both.drop(sequence)
    evict(both.full, sequence.page_key(7, PAGE))
    assert len(both.find(sequence).full) == 7
    assert len(both.find(sequence).sliding) == 2


def test_room_after_a_prefix_does_not_count_its_cached_pages_twice():
    both, sequence = tables(window=6, full=10, sliding=8), sequence_of(33)
    compute(both, sequence, 32)
    both.drop(sequence)
    prefix = both.find(sequence)
    assert (len(prefix.full), len(prefix.sliding)) == (8, 2)
    assert both.room_after(prefix, spare=0) == (2 * PAGE, 6 * PAGE)
    assert both.room_after(prefix, spare=1) == (1 * PAGE, 6 * PAGE)
    both.adopt(sequence, prefix)
    assert both.room_after(prefix, spare=0) == (2 * PAGE, 6 * PAGE), "held pages cost nothing"


def test_reused_is_what_was_found_before_any_preemption():
    both, sequence = tables(window=6), sequence_of(16)
    compute(both, sequence, 16)
    both.drop(sequence)
    sequence.preemptions = 1
    both.adopt(sequence, both.find(sequence))
    assert (sequence.computed, sequence.reused) == (12, 0)


def test_generated_pages_that_leave_the_window_are_evicted_before_those_of_the_prompt():
    both, sequence = tables(window=6, sliding=12), sequence_of(10, max_tokens=40)
    compute(both, sequence, 10)
    for token in range(30):
        sequence.tokens.append(100 + token)
        compute(both, sequence, 1)
    prompt, answer = sequence.page_key(0, PAGE), sequence.page_key(4, PAGE)
    assert both.sliding.lookup(prompt) is not None
    assert both.sliding.lookup(answer) is not None
    both.sliding.allocate(both.sliding.free + 1)
    both.sliding.allocate(both.sliding.cached - 2)
    assert both.sliding.lookup(answer) is None
    assert both.sliding.lookup(prompt) is not None


def test_pools_of_different_pages_do_not_go_together():
    with pytest.raises(ValueError, match="pages of 4 and 8 tokens"):
        PageTables(PagePool(4, 4), PagePool(4, 8), 16)


@pytest.mark.parametrize("window", [1, 2, 6])
def test_pages_of_pending_tokens_are_found_when_their_values_are_known(window: int):
    both, sequence = tables(window=window), sequence_of(3)
    compute(both, sequence, 3)
    sequence.expect()
    compute(both, sequence, 1)
    sequence.expect()
    assert (both.full.held, sequence.registered) == (1, 0)
    sequence.learn(9)
    both.register(sequence)
    key = key_of(b"", [0, 1, 2, 9])
    assert sequence.registered == 1
    assert both.full.lookup(key) == sequence.full_table[0]
    assert (both.sliding.lookup(key) is None) == (window == 1), "a window of one has left the page by then"
    both.drop(sequence)
    assert (both.full.cached, both.sliding.cached) == (1, window > 1)
    other = sequence_of(4)
    other.tokens[3] = 9
    other.tokens.append(10)
    assert len(both.find(other).full) == 1


def test_check_finds_a_table_that_is_not_as_counted():
    for change, message in {
        "one.full_table.pop()": "sequence a: 12 tokens computed",
        "one.full_table[0] = one.full_table[1]": "page 0 counts 1 owners and has 0",
        "one.sliding_table[0] = 5": "sequence a: 12 tokens computed",
        "one.sliding_table[2] = -1": "sequence a: 12 tokens computed",
        "one.computed = 30": "sequence a: 30 tokens computed",
        "both.full.allocate(1)": "page 3 counts 1 owners and has 0",
        "both.sliding.allocate(1)": "page 3 counts 1 owners and has 0",
    }.items():
        both, sequence = tables(window=8), sequence_of(12)
        compute(both, sequence, 12)
        both.check([(sequence, 12)])
        exec(change, {"both": both, "one": sequence})
        with pytest.raises(PageAccountError, match=message):
            both.check([(sequence, max(12, sequence.computed))])


def test_a_table_reaches_to_the_end_of_the_chunk_that_is_computed():
    both, sequence = tables(window=8), sequence_of(30)
    both.grow(sequence, 20)
    both.check([(sequence, 20)])
    with pytest.raises(PageAccountError, match="0 tokens computed, 12 wanted"):
        both.check([(sequence, 12)])
