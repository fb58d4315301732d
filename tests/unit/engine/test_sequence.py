from __future__ import annotations

import pytest

from gptoss_dist.engine.pages import PagePool, key_of
from gptoss_dist.engine.prefix import PageTables, Prefix, ample_sliding_pages, window_pages
from gptoss_dist.engine.request import Finish, Request, Sampling
from gptoss_dist.engine.sequence import Sequence

PAGE = 4


def sequence_of(tokens: int, max_tokens: int = 3, stop: tuple[int, ...] = (), first: int = 0) -> Sequence:
    request = Request("a", tuple(range(first, first + tokens)), Sampling(max_tokens, stop_tokens=stop))
    return Sequence(request, 0)


def tables(window: int, full: int = 32, sliding: int = 32) -> PageTables:
    return PageTables(PagePool(full, PAGE), PagePool(sliding, PAGE), window)


def compute(tables: PageTables, sequence: Sequence, count: int) -> None:
    tables.grow(sequence, sequence.computed + count)
    tables.advance(sequence, count)


def shape(sequence: Sequence) -> str:
    """The sliding table: x for a page that is held, - for one that is gone."""
    return "".join("x" if page >= 0 else "-" for page in sequence.sliding_table)


def test_what_a_sequence_knows_of_itself():
    sequence = sequence_of(5)
    assert (sequence.id, sequence.length, sequence.prompt_length, sequence.remaining) == ("a", 5, 5, 5)
    assert sequence.is_prefilling
    sequence.computed = 5
    sequence.tokens.append(9)
    assert (sequence.length, sequence.prompt_length, sequence.remaining) == (6, 5, 1)
    assert sequence.generated == [9]
    assert not sequence.is_prefilling


def test_a_stop_token_ends_a_sequence_and_so_does_the_last_token_allowed():
    sequence = sequence_of(4, max_tokens=2, stop=(3, 50))
    assert sequence.finish is None, "a stop token in the prompt stops nothing"
    sequence.tokens.append(7)
    assert sequence.finish is None
    sequence.tokens.append(8)
    assert sequence.finish is Finish.length
    sequence.tokens[-1] = 50
    assert sequence.finish is Finish.stop


def test_keys_chain_over_prompt_and_generated_tokens():
    sequence = sequence_of(6)
    sequence.tokens += [70, 71, 72]
    first = key_of(b"", [0, 1, 2, 3])
    assert sequence.page_key(1, PAGE) == key_of(first, [4, 5, 70, 71])
    assert sequence.page_key(0, PAGE) == first
    with pytest.raises(IndexError, match="page 2 of a is not full: there are 9 tokens"):
        sequence.page_key(2, PAGE)


def test_two_sequences_are_equal_only_if_they_are_the_same():
    one, other = sequence_of(3), sequence_of(3)
    assert one != other
    assert [other, one].index(one) == 1


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


def test_pending_tokens_count_and_are_not_known():
    sequence = sequence_of(7, max_tokens=2, stop=(50,))
    sequence.expect()
    assert (sequence.length, sequence.known, sequence.pending, sequence.fed) == (8, 7, 1, True)
    assert (sequence.generated, sequence.finish, sequence.exhausted) == ([], None, False)
    with pytest.raises(IndexError, match="page 1 of a is not full: there are 7 tokens"):
        sequence.page_key(1, PAGE)
    sequence.expect()
    assert sequence.exhausted
    assert sequence.finish is None, "nobody knows the values"
    sequence.learn(50)
    assert (sequence.generated, sequence.finish) == ([50], Finish.stop)
    assert sequence.page_key(1, PAGE) == key_of(key_of(b"", [0, 1, 2, 3]), [4, 5, 6, 50])
    sequence.learn(1)
    with pytest.raises(AssertionError, match="no pending token"):
        sequence.learn(1)


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
