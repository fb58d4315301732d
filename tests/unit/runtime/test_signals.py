from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator

import pytest

from gptoss_dist.runtime.signals import SignalThread, interrupted_at_its_end


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_thread_and_not_the_main_thread(signum: signal.Signals):
    before = signal.getsignal(signum)
    arrived: queue.Queue[tuple[int, threading.Thread]] = queue.Queue()
    thread = SignalThread(lambda number: arrived.put((number, threading.current_thread())))
    try:
        os.kill(os.getpid(), signum)
        number, by = arrived.get(timeout=10)
    finally:
        thread.close()
    assert number == signum
    assert by is not threading.main_thread()
    assert signal.getsignal(signum) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_other_signals_are_none_of_its_business():
    arrived: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = SignalThread(arrived.append)
    os.kill(os.getpid(), signal.SIGUSR1)
    thread.close()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert arrived == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is the point here
def test_a_forked_child_has_the_handlers_of_before():
    arrived: list[int] = []
    thread = SignalThread(arrived.append)
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)  # ends the child, as it would without us
        os._exit(0)
    _, status = os.waitpid(child, 0)
    thread.close()
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert arrived == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as where a person's script runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(times: int, done: list[str]) -> None:
    with interrupted_at_its_end():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("the rest")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("times", "does"), [(1, ["the rest"]), (2, [])])
def test_an_interrupt_comes_at_the_end_of_the_block_and_a_second_one_at_once(times: int, does: list[str]):
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(times, done)
    assert done == does
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupt(0, done)


def test_what_else_is_done_with_an_interrupt_stays():
    arrived: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    with interrupted_at_its_end():
        signal.raise_signal(signal.SIGINT)
        assert arrived == [signal.SIGINT]
    signal.signal(signal.SIGINT, before)
