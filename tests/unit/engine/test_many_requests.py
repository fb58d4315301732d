"""10,000 random requests with random cancellations; `make stress` does it with other seeds."""

from __future__ import annotations

from many_requests import check_many


def test_ten_thousand_requests_get_what_each_gets_alone():
    assert check_many(seed=7, count=10_000).total() == 10_000
