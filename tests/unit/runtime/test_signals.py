from __future__ import annotations

import os
import queue
import signal
import threading

import pytest

from gptoss_dist.runtime.signals import SignalThread


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
