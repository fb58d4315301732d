from __future__ import annotations

import random

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError
from gptoss_dist.server.event_log import EventLog
from gptoss_dist.server.store import Record, ResponseStore, StoredItem, encode


def item(name: str, size: int = 10) -> StoredItem:
    return StoredItem(name, encode({"id": name, "text": "x" * size}))


def record(name: str, past: tuple[StoredItem, ...] = (), size: int = 10, log: EventLog | None = None) -> Record:
    return Record(name, encode({"id": name}), past, (item(f"in-{name}", size),), (item(f"out-{name}", size),), log)


def logged(store: ResponseStore, *sizes: int) -> EventLog:
    log = store.new_log()
    for size in sizes:
        log.append(b"x" * size)
    return log


def true_bytes(store: ResponseStore) -> int:
    records = list(store._records.values())
    items = {id(one): len(one.content) for each in records for one in each.conversation}
    return sum(items.values()) + sum(each.own_bytes + (each.log.bytes if each.log else 0) for each in records)


def test_a_response_is_found_until_it_is_deleted():
    store = ResponseStore(10, 10**6)
    one = record("a")
    store.put(one)
    assert store.get("a") is one
    assert store.item("in-a") == {"id": "in-a", "text": "x" * 10}
    assert store.delete("a")
    assert not store.delete("a")
    assert store.get("a") is None
    assert store.item("in-a") is None
    assert store.bytes == 0


def test_what_was_used_longest_ago_is_evicted_first():
    store = ResponseStore(3, 10**6)
    for name in "abc":
        store.put(record(name))
    store.get("a")
    store.put(record("d"))
    assert [name for name in "abcd" if name in store] == ["a", "c", "d"]


def test_bytes_are_bounded_and_a_response_larger_than_all_is_not_kept():
    store = ResponseStore(100, 2000)
    for number in range(20):
        store.put(record(str(number), size=200))
        assert store.bytes <= 2000
    assert 0 < len(store) < 6
    assert "19" in store
    kept = [str(number) for number in range(20) if str(number) in store]
    store.put(record("large", size=5000))
    assert "large" not in store
    assert all(name in store for name in kept), "what is not kept takes nobody's place"


def test_a_store_of_nothing_keeps_nothing():
    for store in (ResponseStore(0, 10**6), ResponseStore(10, 0)):
        store.put(record("a"))
        assert len(store) == 0
        assert store.bytes == 0


def test_a_chain_shares_its_items_and_outlives_its_beginning():
    store = ResponseStore(10, 10**6)
    first = record("a", size=1000)
    second = record("b", first.conversation, size=1000)
    store.put(first)
    alone = store.bytes
    store.put(second)
    assert store.bytes < 2 * alone + 100  # the items of the first are counted once
    assert store.delete("a")
    assert store.get("b").conversation[:2] == first.conversation
    assert store.bytes == true_bytes(store)


def test_the_log_of_a_stream_is_counted():
    store = ResponseStore(10, 10**6)
    log = logged(store, 500, 500)
    assert store.bytes == store.log_bytes == 1000
    store.put(record("a", log=log))
    assert store.bytes == true_bytes(store) > 1000
    store.delete("a")
    assert (store.bytes, store.log_bytes) == (0, 0)


def test_logs_have_half_of_the_room_and_responses_the_rest():
    store = ResponseStore(10, 4000)
    store.put(record("a"))
    store.put(record("b", log=logged(store, 1000)))
    running, other = logged(store, *[100] * 100), logged(store, 100)
    assert store.log_bytes <= 2000
    assert all(name in store for name in "ab")
    assert store.get("b").log is None, "of a finished response the log goes first"
    assert (running.end, running.bytes, other.begin) == (100, 100 * (100 - running.begin), 0)
    assert running.take(running.begin, 2) == [b"x" * 100] * 2
    store.put(record("c", log=running))
    assert store.get("c").log is running
    store.discard(other)
    store.discard(other)
    assert store.bytes == true_bytes(store)


def test_the_response_that_was_used_last_is_kept_where_logs_take_the_room():
    store = ResponseStore(10, 4000)
    store.put(record("a", size=1500))
    log = logged(store, *[100] * 50)
    assert "a" in store
    assert store.bytes <= 4000
    assert 0 < log.begin < log.end == 50


def test_a_log_may_be_read_on_when_its_response_is_not_kept():
    store = ResponseStore(10, 1000)
    log = logged(store, 100, 100)
    store.put(record("a", size=5000, log=log))
    assert "a" not in store
    assert store.bytes == 0
    assert log.take(0, 5) == [b"x" * 100] * 2


def test_put_again_replaces():
    store = ResponseStore(10, 10**6)
    store.put(record("a", size=1000))
    store.put(record("a", size=1))
    assert len(store) == 1
    assert store.bytes == true_bytes(store) < 500


def test_bytes_are_right_after_any_sequence_of_uses():
    chance = random.Random(3)
    store = ResponseStore(12, 6000)
    for number in range(400):
        names = list(store._records)
        past = store.get(chance.choice(names)).conversation if names and chance.random() < 0.6 else ()
        if names and chance.random() < 0.2:
            store.delete(chance.choice(names))
        log = logged(store, *[chance.randrange(60)] * 20) if chance.random() < 0.3 else None
        store.put(record(str(number), past[-20:], size=chance.randrange(200), log=log))
        assert store.bytes == true_bytes(store) <= 6000
        assert len(store) <= 12
    for name in list(store._records):
        store.delete(name)
    assert (store.bytes, store._holders, store._by_item, store._logs) == (0, {}, {}, {})


@pytest.mark.parametrize("word", ["job.store_responses=-1", "job.store_mb=-1", "job.store_mb=.inf"])
def test_limits_that_cannot_be_are_named(word):
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose_run(["job=serve", word])
    run = compose_run(["job=serve", "job.store_responses=5", "job.store_mb=0.5"])
    assert (run.job.store_responses, run.job.store_mb) == (5, 0.5)
