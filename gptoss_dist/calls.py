"""Calls of a person's own script, one after the other, made alike on all ranks: every rank gets the same tokens.

    rank 0     submit ─► steps of the engine ─► events ─┬─► tokens
    others     follow until rank 0 releases them        └─► the same, broadcast

Ranks meet after every step where tokens are wanted as they come, and else once, when all are there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.runtime.signals import interrupted_at_its_end
from gptoss_dist.session import Session


class Calls:
    """The call under way, over one session."""

    def __init__(self, session: Session) -> None:
        """None is."""
        self._session = session
        self._count = 0
        self._call: Generator[tuple[int, Finish | None]] | None = None

    def tokens(
        self, prompt: Sequence[int], sampling: Sampling, *, at_once: bool
    ) -> Generator[tuple[int, Finish | None]]:
        """The tokens of one call; the call before it is over then, and with it what it had left to say.

        `at_once`: ranks need not meet before all tokens are there. Raises what the engine refuses.
        """
        self.close()
        self._count += 1
        self._call = self._run(Request(self._id(), tuple(prompt), sampling), at_once)
        return self._call

    def cancel(self) -> None:
        """No more tokens are wanted of the call; whoever reads them reads on to the end."""
        self._session.engine.cancel(self._id())

    def close(self) -> None:
        """End the call, if there is one. Collective."""
        if self._call is not None:
            self._call.close()

    def _id(self) -> str:
        return f"call-{self._count}"

    def _run(self, request: Request, at_once: bool) -> Generator[tuple[int, Finish | None]]:
        self._submit(request)
        is_over = False
        try:
            while not is_over:
                events, is_over = self._events(at_once)
                for event in events:
                    if event.request_id == request.id:  # else what an interrupted call left
                        for token in event.tokens:
                            yield token, event.finish
        except BaseException as end:
            self._session.engine.cancel(request.id)
            while isinstance(end, GeneratorExit) and not is_over:
                _, is_over = self._events(at_once=True)
            raise

    def _submit(self, request: Request) -> None:
        """Queue a request; what rank 0 refuses is refused on every rank, or the others would follow it for ever."""
        refusal: GptOssDistError | None = None
        try:
            self._session.engine.submit(request)
        except GptOssDistError as error:
            refusal = error
        if refusal := self._session.group.broadcast_object(refusal):
            raise refusal

    def _events(self, at_once: bool) -> tuple[list[Event], bool]:
        """Events of all that is left, or of one step, and whether that was all; rank 0's, on every rank. Collective.

        A rank alone has nobody to meet, and can be interrupted between two steps: the next call finds the engine whole.
        """
        engine, group = self._session.engine, self._session.group
        if group.rank != 0:
            engine.follow()
            return group.broadcast_object(([], True))
        if at_once and group.world_size > 1:
            events = list(engine.stream([]))
        else:
            engine.release()
            with interrupted_at_its_end():
                events = engine.step()
        return group.broadcast_object((events, not engine.has_work))
