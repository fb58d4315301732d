"""Rank 0's main thread while the server runs: letters in, one step of the engine, events out.

HTTP thread ──► Mailbox ──► submit, cancel ──► engine.step() ──► on_step(events) ──► HTTP thread
                                 ▲                  │ at least once a second, so that dead ranks are noticed
                                 └──────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Event
from gptoss_dist.engine.stats import EngineStats
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.server.mailbox import Cancellation, Mailbox, Submission

HEARTBEAT_S = 1.0
"""The longest time between two steps while there is nothing to do."""


def run_loop(
    engine: Engine,
    mailbox: Mailbox,
    on_step: Callable[[Sequence[Event], EngineStats], None],
    is_over: Callable[[], bool],
    heartbeat_s: float = HEARTBEAT_S,
) -> None:
    """Step until `is_over()`, which is looked at between two steps; `on_step` is called after each one.

    Whatever a step raises ends the loop. The other ranks must be in `Engine.follow`, and are released at the end.
    """
    while True:
        for letter in mailbox.take(0.0 if engine.has_work else heartbeat_s):
            if isinstance(letter, Cancellation):
                engine.cancel(letter.request_id)
            else:
                letter.answer(_submit(engine, letter))
        if is_over():
            break
        on_step(engine.step(), engine.stats())
    engine.release()
    engine.step()  # with it the others go


def _submit(engine: Engine, submission: Submission) -> GptOssDistError | None:
    """All requests of a submission, or none: why it is refused."""
    for count, request in enumerate(submission.requests):
        try:
            engine.submit(request)
        except GptOssDistError as error:
            for queued in submission.requests[:count]:
                engine.cancel(queued.id)
            return error
    return None
