"""If a rank fails, vanishes or is told to stop, all ranks end together, and the cause is said once.

    with guard(read_rank_env(os.environ)) as watch:
        group = start("cuda", env, store=watch.store)
        ...

Works the same under torchrun, accelerate, srun and ranks started by hand: each rank keeps a connection to a hub on
rank 0 (hub.py), so no launcher is needed to notice a death. Ranks may be stuck in a collective at that moment, where
no Python of the main thread runs, so threads end the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from gptoss_dist.collector import uncollected
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.cause import Cause
from gptoss_dist.runtime.report import cause_of, say, text_of
from gptoss_dist.runtime.signals import SignalThread

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from gptoss_dist.runtime.hub import Hub
    from gptoss_dist.runtime.peer import Peer

_BETTER_CAUSE_SECONDS = 1.5
"""How long a broken collective waits for the news of whose death broke it."""
_MIND_SECONDS = 1.0
_LAUNCHER_SECONDS = 0.5
"""torchrun sends SIGTERM because a rank died: its death is the cause, and arrives within this time."""
_VERDICT_SECONDS = 1.0
_LINGER_SECONDS = 2.0
_BLAME_SECONDS = 0.3
"""A launcher blames the rank that it sees end first: the others wait until it has seen the one that failed."""
_REPEAT_SECONDS = 1.0
"""A terminal or supervisor and the launcher both send the same signal; a second one from a person comes later."""


def guard(env: RankEnv | None, *, grace_s: float = 5.0, join_timeout: timedelta = timedelta(minutes=3)) -> Watch:
    """Guard this rank's work, as the outermost `with` of its main thread; None means no other ranks.

    A GptOssDistError ends every rank with its `exit_status` and its message, printed by this rank; any other exception
    with 1 and a traceback; SIGINT and SIGTERM with 130 and 143. After a signal `stop_requested` is set on every rank,
    and one that has not left the block `grace_s` seconds later is ended. A second signal ends the rank at once.
    """
    return Watch(env, grace_s, join_timeout)


class Watch:
    """One rank's part in ending together; made by `guard`."""

    def __init__(self, env: RankEnv | None, grace_s: float, join_timeout: timedelta) -> None:
        """Nothing happens before the `with` block begins."""
        self._env = env if env is not None and env.world_size > 1 else None
        self._rank = env.rank if env else 0
        self._grace_s = self._signal_grace_s = grace_s
        self._join_timeout = join_timeout
        self.stop_requested = threading.Event()
        """Set on every rank once any rank was told to stop: a loop looks at it between two steps."""
        self.store: Store | None = None
        """The ranks' common key-value store; None without other ranks."""
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._decided = threading.Event()
        self._work_over = threading.Event()
        self._cause: Cause | None = None
        self._speaker = self._rank
        self._winder: threading.Thread | None = None
        self._last_resort: threading.Timer | None = None
        self._signalled_at: float | None = None
        self._signals: SignalThread | None = None
        self._hub: Hub | None = None
        self._peer: Peer | None = None

    @property
    def cause(self) -> Cause | None:
        """Why the run is ending; None while it is not."""
        return self._cause

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when the run ends early for whatever cause; it has the grace to finish."""
        self._callbacks.append(callback)

    def allow_after_signal(self, seconds: float) -> None:
        """Give the main thread this long, instead of the grace, to leave the block after a signal; on every rank."""
        self._signal_grace_s = seconds

    def __enter__(self) -> Watch:
        """Catch signals and join the other ranks."""
        try:
            if threading.current_thread() is threading.main_thread():
                self._signals = SignalThread(self._on_signal)
            if self._env is not None:
                self._join(self._env)
        except Exception as error:  # noqa: BLE001  __exit__ is not called for what happens here
            self._fail(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Leave in step with the others, or end all ranks."""
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self._leave()
        else:
            self._fail(error)

    def _join(self, env: RankEnv) -> None:
        with uncollected():  # torch
            from gptoss_dist.runtime.peer import Peer, open_hub
            from gptoss_dist.runtime.store import join_store

        self.store = join_store(env, self._join_timeout)
        self._hub = open_hub(env, self.store, self._join_timeout)
        self._peer = Peer(env, self.store, self._join_timeout, self._decide)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._mind_launcher, args=(os.getppid(),), name="gptoss-mind", daemon=True).start()

    def _leave(self) -> None:
        self._work_over.set()
        if self._cause is None and self._peer is not None:
            self._peer.leave()
            if self._hub is not None:
                self._hub.wait()  # the others still need it; the longest collective's timeout bounds this
                if self._hub.cause is not None:
                    self._decided.wait(_VERDICT_SECONDS)
        if self._cause is not None:
            self._end()
        if self._peer is not None:
            self._peer.close()
        if self._signals is not None:
            self._signals.close()

    def _fail(self, error: BaseException) -> None:
        self._work_over.set()
        if isinstance(error, RuntimeError) and self._peer is not None:
            self._decided.wait(_BETTER_CAUSE_SECONDS)
        mine = cause_of(error, self._rank)
        self._announce(mine)
        if self._cause == mine and self._is_mine(mine):
            say(text_of(error, mine, alone=self._env is None))
        self._end()

    def _announce(self, cause: Cause) -> None:
        """Put `cause` forward; afterwards some cause is decided."""
        if self._peer is not None and self._peer.report(cause):
            self._decided.wait(_VERDICT_SECONDS)
        self._decide(cause, self._rank)

    def _decide(self, cause: Cause, speaker: int) -> None:
        with self._lock:
            if self._cause is not None:
                return
            self._cause, self._speaker = cause, speaker
            if cause.kind == "stopped":
                self.stop_requested.set()
            self._winder = threading.Thread(target=self._wind_up, args=(cause,), name="gptoss-end", daemon=True)
            self._winder.start()
            self._decided.set()

    def _wind_up(self, cause: Cause) -> None:
        """Whatever the main thread is doing, this rank ends: after a signal within the grace, else now."""
        grace_s = self._signal_grace_s if cause.kind == "stopped" else self._grace_s
        deadline = time.monotonic() + grace_s
        self._last_resort = _end_after(grace_s + 2 * _LINGER_SECONDS, cause.status)
        if self._speaker == self._rank and cause.kind != "failed":
            say(cause.message if cause.kind == "stopped" else f"rank {cause.rank}: {cause.message}")
        callbacks = threading.Thread(target=self._call_back, daemon=True)
        callbacks.start()
        callbacks.join(grace_s)
        main_ends_it = cause.kind == "stopped" or self._is_mine(cause)
        if main_ends_it and self._work_over.wait(max(0.0, deadline - time.monotonic())):
            return
        self._exit(cause)

    def _is_mine(self, cause: Cause) -> bool:
        """Whether this rank's own exception is the cause, which its main thread then says and ends with."""
        return cause.kind == "failed" and cause.rank == self._rank

    def _call_back(self) -> None:
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001  one that fails must not keep the others from being called
                say(traceback.format_exc())

    def _end(self) -> None:
        """From the main thread, once a cause is decided: end this rank with its status."""
        self._decided.wait()
        assert self._cause is not None
        assert self._winder is not None
        self._winder.join(self._grace_s)
        if self._env is None:
            if self._last_resort is not None:
                self._last_resort.cancel()
            if self._signals is not None:
                self._signals.close()
            raise SystemExit(self._cause.status)
        self._exit(self._cause)

    def _exit(self, cause: Cause) -> None:
        """End the process without unwinding: other threads may be stuck in a collective that will never end."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:  # closed by whoever started this process
                    stream.flush()
        if self._peer is not None:
            self._peer.close()
        if self._hub is not None:
            self._hub.wait(_LINGER_SECONDS)
        if cause.kind == "failed" and not self._is_mine(cause):
            time.sleep(_BLAME_SECONDS)
        os._exit(cause.status)

    def _on_signal(self, signum: int) -> None:
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            threading.Thread(target=self._stop, args=(signum,), name="gptoss-stop", daemon=True).start()
        elif now - self._signalled_at > _REPEAT_SECONDS:
            os._exit(128 + signum)

    def _mind_launcher(self, launcher: int) -> None:
        """Ranks whose torchrun was killed would work on, and hold their GPUs, with nobody to stop them."""
        while not self._decided.wait(_MIND_SECONDS) and not self._work_over.is_set():
            if os.getppid() != launcher:
                message = "stopped: the launcher of this rank is gone"
                self._announce(Cause("stopped", self._rank, message, 128 + signal.SIGTERM))

    def _stop(self, signum: int) -> None:
        if self._peer is not None:
            self._decided.wait(_LAUNCHER_SECONDS)
        self._announce(Cause.stopped(self._rank, signum))


def _end_after(seconds: float, status: int) -> threading.Timer:
    """The last resort: the main thread may hold the lock of a standard stream that nobody reads any more."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
    return timer
