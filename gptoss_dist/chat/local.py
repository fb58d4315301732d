"""Answers from the model on these ranks. Rank 0 talks; the others follow it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.chat.interrupts import Interrupts
from gptoss_dist.engine.request import Finish, Request
from gptoss_dist.harmony.stops import StopFinder
from gptoss_dist.harmony.stream import Delta, Reader, tool_name
from gptoss_dist.jobs.generate import sampling_of
from gptoss_dist.jobs.readers import HarmonyReader
from gptoss_dist.session import Session


class LocalModel:
    """Who answers. Only rank 0 makes one."""

    def __init__(self, session: Session, should_stop: Callable[[], bool], interrupts: Interrupts) -> None:
        """`should_stop` and `interrupts` are looked at after every step, and end the answer where it is."""
        self._session, self._should_stop, self._interrupts = session, should_stop, interrupts
        self._turns = 0

    @property
    def name(self) -> str:
        """What is loaded, and how."""
        loaded = self._session.loaded
        return f"{loaded.checkpoint.folder.name}, plan={loaded.plan.name} on {self._session.group.world_size} rank(s)"

    def idle(self) -> None:
        """Called about once a second while nobody asks: a rank that is gone is noticed."""
        self._session.engine.step()

    def answer(self, conversation: Conversation, turn: Turn) -> Iterator[Piece]:
        """The next answer piece by piece; `turn` learns its length and how it ended. Raises PromptError."""
        engine, request = self._session.engine, self._request(conversation)
        reader, finder = Reader(salt=request.id), StopFinder(self._session.run.generation.stop)
        engine.submit(request)
        with self._interrupts.watched():
            for event in engine.drain():
                turn.tokens += len(event.tokens)
                for token in event.tokens:
                    yield from _pieces(reader.feed(token), finder)
                if event.finish is not None:
                    turn.finish = event.finish.value
                if finder.stopped or self._interrupts.requested or self._should_stop():
                    engine.cancel(request.id)
        yield from _pieces(reader.flush(), finder)
        if rest := finder.flush():
            yield Piece("final", rest)
        if finder.stopped:
            turn.finish = Finish.stop.value
        elif turn.finish == Finish.stop.value and turn.calls:
            turn.finish = "tool_calls"

    def _request(self, conversation: Conversation) -> Request:
        self._turns += 1
        engine, generation = self._session.engine, self._session.run.generation
        tokens = conversation.tokens()
        seed = secrets.randbelow(2**31) if generation.seed is None else generation.seed + self._turns - 1
        room = max(1, engine.context - len(tokens))  # a long conversation leaves less for its answer
        wanted = min(generation.max_new_tokens or room, room)
        generation = replace(generation, seed=seed, max_new_tokens=wanted)
        sampling = sampling_of(generation, HarmonyReader(()).stop_tokens, room)
        return Request(f"turn-{self._turns}", tuple(tokens), sampling)

    def close(self) -> None:
        """Let the other ranks go: with the step after it they stop following."""
        self._session.engine.release()
        self._session.engine.step()


def _pieces(deltas: Sequence[Delta], finder: StopFinder) -> Iterator[Piece]:
    """What can be shown: of the final text nothing from a stop text on, and nothing at all after that."""
    for delta in deltas:
        if finder.stopped:
            return
        if delta.recipient is not None:
            yield Piece("call", delta.text, tool_name(delta.recipient), delta.call_id)
        elif delta.channel != "final":
            yield Piece(delta.channel, delta.text)
        elif text := finder.feed(delta.text):
            yield Piece("final", text)
