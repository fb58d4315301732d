from __future__ import annotations

from gptoss_dist.engine.dispatch import Dispatch
from gptoss_dist.engine.request import Request, Sampling


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_request_is_not_compared_with_all_that_are_queued():
    dispatch = Dispatch(1, 1, None, None)
    for number in range(100):
        assert Counted(number) not in dispatch
        dispatch.submit(Request(Counted(number), (1,), Sampling(1)))
    for number in range(100):
        dispatch.cancel(Counted(number))
    assert Counted.compared < 1000
    orders = dispatch.send()
    assert orders is not None
    assert [request.id for request in orders.requests] == orders.cancelled == [str(number) for number in range(100)]
