from __future__ import annotations

import pytest

from gptoss_dist.engine.request import Event
from gptoss_dist.engine.work import Running, Work, at_once

EVENTS = [Event("a", (1,))]


class Device:
    """Is done when it is told so; `waits` counts how often somebody went on before."""

    def __init__(self) -> None:
        self.done, self.waits = False, 0

    def work(self) -> Work:
        for _ in range(2):
            yield lambda: self.done
            self.waits += not self.done
        return EVENTS


def test_at_once_waits_wherever_there_is_something_to_wait_for():
    device = Device()
    assert at_once(device.work()) == EVENTS
    assert device.waits == 2


def test_work_that_is_left_goes_on_where_it_was():
    device = Device()
    running = Running(device.work())
    assert not running.waits, "nothing was begun"
    assert running.go_on() is None
    assert running.waits
    device.done = True
    assert not running.waits
    assert running.go_on() is None
    assert running.go_on() == EVENTS
    assert device.waits == 0


def test_work_that_was_begun_can_be_finished_by_waiting():
    device = Device()
    running = Running(device.work())
    running.go_on()
    assert running.finish() == EVENTS
    assert device.waits == 2


def test_what_fails_is_raised():
    def fails() -> Work:
        yield lambda: True
        raise ValueError("a defect")

    running = Running(fails())
    running.go_on()
    with pytest.raises(ValueError, match="a defect"):
        running.go_on()
