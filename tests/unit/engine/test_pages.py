from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from gptoss_dist.engine.pages import PageAccountError, PagePool, Worth, key_of


def keyed_pool(pages: int = 3) -> tuple[PagePool, list[int], list[bytes]]:
    """A pool of 4-token pages of which `pages` are held and can be found."""
    pool = PagePool(pages + 1, 4)
    held = pool.allocate(pages)
    keys = [key_of(b"", [index]) for index in range(pages)]
    for page, key in zip(held, keys, strict=True):
        pool.register(page, key)
    return pool, held, keys


def test_a_key_is_a_chain_of_blake2b_over_little_endian_tokens():
    first = hashlib.blake2b(b"".join(token.to_bytes(8, "little") for token in (7, 200002)), digest_size=16).digest()
    assert key_of(b"", [7, 200002]) == first
    second = hashlib.blake2b(first + (9).to_bytes(8, "little"), digest_size=16).digest()
    assert key_of(first, [9]) == second
    assert second.hex() == "9847b806cd80980058f9c2477234c9b3", "every machine and every run finds the same key"


def test_equal_pages_after_different_prefixes_have_different_keys():
    tokens = [1, 2, 3, 4]
    assert key_of(key_of(b"", [1]), tokens) != key_of(key_of(b"", [2]), tokens)
    assert key_of(b"", [1, 2]) != key_of(key_of(b"", [1]), [2])


def test_pages_come_in_order_and_the_last_released_is_taken_first():
    pool = PagePool(4, 16)
    assert pool.allocate(3) == [0, 1, 2]
    pool.release(0)
    pool.release(2)
    assert pool.allocate(3) == [2, 0, 3]


def test_can_allocate_tells_what_allocate_does():
    pool, held, _ = keyed_pool(3)
    assert (pool.free, pool.cached, pool.held, pool.available) == (1, 0, 3, 1)
    pool.release(held[0])
    assert (pool.free, pool.cached, pool.held, pool.available) == (1, 1, 2, 2)
    assert pool.can_allocate(2)
    assert not pool.can_allocate(3)
    with pytest.raises(PageAccountError, match="3 pages wanted, and 1 are free and 1 cached"):
        pool.allocate(3)
    assert pool.available == 2
    assert len(pool.allocate(2)) == 2


def test_a_shared_page_is_cached_after_its_last_release():
    pool, held, keys = keyed_pool()
    pool.retain(held[0])
    pool.release(held[0])
    assert pool.cached == 0
    pool.release(held[0])
    assert (pool.cached, pool.lookup(keys[0])) == (1, held[0])
    assert pool.cached_among(held) == 1
    pool.retain(held[0])
    assert (pool.cached, pool.cached_among(held)) == (0, 0)
    pool.check(Counter(held))


def test_the_least_recently_used_page_is_evicted_first():
    pool, held, keys = keyed_pool(3)
    for page in (held[1], held[0], held[2]):
        pool.release(page)
    pool.retain(held[1])  # found again, so it is used last
    pool.release(held[1])
    assert pool.allocate(3) == [3, held[0], held[2]]
    assert [pool.lookup(key) for key in keys] == [None, held[1], None]
    assert pool.evictions == 2


def test_a_cold_page_is_evicted_before_all_others():
    pool, held, _ = keyed_pool(4)
    pool.release(held[0])
    pool.release(held[2], Worth.cold)
    pool.release(held[1], Worth.cold)
    pool.release(held[3], Worth.branch)
    assert (pool.cached, pool.warm) == (4, 2)
    assert pool.allocate(5) == [4, held[2], held[1], held[0], held[3]]


def test_a_branch_stays_one_until_it_is_evicted():
    pool, held, keys = keyed_pool(3)
    pool.release(held[0], Worth.branch)
    for worth in (Worth.cold, Worth.warm, Worth.cold):
        pool.retain(held[0])
        pool.release(held[0], worth)
    pool.release(held[1])
    assert pool.warm == 2
    assert pool.allocate(2) == [3, held[0]]
    pool.register(held[0], keys[0])
    pool.release(held[0], Worth.cold)
    assert pool.warm == 1, "another life"


def test_the_last_to_release_a_page_says_what_it_is_worth():
    pool, held, _ = keyed_pool(2)
    for page, last in zip(held, (Worth.cold, Worth.warm), strict=True):
        pool.retain(page)
        pool.release(page, Worth.warm)
        pool.release(page, last)
    assert (pool.cached, pool.warm) == (2, 1)
    assert pool.allocate(2) == [2, held[0]]


def test_the_first_page_of_a_content_stays_the_one_that_is_found():
    pool, held, keys = keyed_pool(2)
    [other] = pool.allocate(1)
    pool.register(other, keys[0])
    assert pool.lookup(keys[0]) == held[0]
    pool.release(other)
    assert (pool.free, pool.cached) == (1, 0)


def test_wrong_calls_are_named():
    pool, held, keys = keyed_pool(2)
    with pytest.raises(PageAccountError, match="page 2 is free: it has no content"):
        pool.retain(2)
    with pytest.raises(PageAccountError, match="page 2 is released, and nobody holds it"):
        pool.release(2)
    with pytest.raises(PageAccountError, match="page 2 cannot take a key"):
        pool.register(2, b"key")
    with pytest.raises(PageAccountError, match="page 0 cannot take a key"):
        pool.register(held[0], keys[1])
    with pytest.raises(ValueError, match="0 pages of 4 tokens"):
        PagePool(0, 4)


def test_check_names_what_is_wrong():
    def broken(change: str) -> PagePool:
        pool, held, keys = keyed_pool(3)
        pool.release(held[2])
        exec(change, {"pool": pool, "keys": keys})
        return pool

    holders = {0: 1, 1: 1}
    broken("").check(holders)
    for change, message in {
        "pool._free.append(3)": "free list twice",
        "pool._free.append(1)": "2 free, 1 cached, 2 held: not 4 pages",
        "pool._free.clear()": "0 free, 1 cached, 2 held: not 4 pages",
        "pool._free[:] = [1]": "page 1 is in 2 of the states",
        "pool._free[:] = [4]": "page 3 is in 0 of the states",
        "pool._references[1] += 1": "page 1 counts 2 owners and has 1",
        "pool._keys[2] = None": "page 2 is cached without a key",
        "del pool._page_of[keys[1]]": "page 1 has a key by which it is not found",
        "pool._keys[1] = None": "3 keys lead to pages, and 2 pages",
    }.items():
        with pytest.raises(PageAccountError, match=message):
            broken(change).check(holders)
    with pytest.raises(PageAccountError, match="page 1 counts 1 owners and has 0"):
        broken("").check({0: 1})


def test_random_calls_agree_with_a_slow_account():
    rng = random.Random(5)
    pool = PagePool(12, 2)
    holders: Counter[int] = Counter()
    content: dict[int, bytes] = {}
    order: list[int] = []  # cached pages, the next to be evicted first, once the cold ones are gone
    worths: dict[int, Worth] = {}
    for _ in range(8000):
        action = rng.randrange(4)
        page = rng.choice(sorted(holders)) if holders else None
        if action == 0 and len(holders) < 12:
            [taken] = pool.allocate(1)
            if 12 - len(holders) == len(order):
                assert taken == next((one for one in order if worths[one] is Worth.cold), order[0])
                order.remove(taken)
                del content[taken]
            worths.pop(taken, None)
            assert taken not in holders
            assert taken not in order
            holders[taken] += 1
        elif action == 1 and page is not None:
            worth = rng.choices((Worth.cold, Worth.warm, Worth.branch), (4, 4, 1))[0]
            pool.release(page, worth)
            worths[page] = Worth.branch if worths.get(page) is Worth.branch else worth
            holders[page] -= 1
            if not holders[page]:
                del holders[page]
                if page in content:
                    order.append(page)
        elif action == 2 and page is not None and page not in content:
            key = key_of(b"", [rng.randrange(30)])
            if key not in content.values():
                content[page] = key
            pool.register(page, key)
        elif action == 3 and content:
            page = rng.choice(sorted(content))
            assert pool.lookup(content[page]) == page
            pool.retain(page)
            holders[page] += 1
            if page in order:
                order.remove(page)
        pool.check(holders)
        assert (pool.cached, pool.held) == (len(order), len(holders))
        assert pool.warm == sum(worths[one] is not Worth.cold for one in order)
    assert pool.evictions > 50
