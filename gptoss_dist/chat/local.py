"""Answers from the model on these ranks. Rank 0 talks; the others follow its steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.engine.request import Finish, Request
from gptoss_dist.harmony.stream import Delta, Reader, tool_name
from gptoss_dist.jobs.generate import sampling_of
from gptoss_dist.jobs.readers import HarmonyReader
from gptoss_dist.session import Session


class LocalModel:
    """Who answers. Only rank 0 makes one."""

    def __init__(self, session: Session, should_stop: Callable[[], bool]) -> None:
        """`should_stop` is looked at after every step, and ends the answer where it is."""
        self._session, self._should_stop = session, should_stop
        self._turns = 0

    @property
    def name(self) -> str:
        """What is loaded, and how."""
        loaded = self._session.loaded
        return f"{loaded.checkpoint.folder.name}, plan={loaded.plan.name} on {self._session.group.world_size} rank(s)"

    def idle(self) -> None:
        """Called about once a second while nobody asks: keeps the other ranks in step."""
        self._session.engine.step()

    def answer(self, conversation: Conversation, turn: Turn) -> Iterator[Piece]:
        """The next answer piece by piece; `turn` learns its length and how it ended. Raises PromptError."""
        self._turns += 1
        name = f"turn-{self._turns}"
        reader, engine = Reader(salt=name), self._session.engine
        tokens = conversation.tokens()
        generation = self._session.run.generation
        seed = secrets.randbelow(2**31) if generation.seed is None else generation.seed + self._turns - 1
        room = max(1, engine.context - len(tokens))  # a long conversation leaves less for its answer
        wanted = min(generation.max_new_tokens, room)
        sampling = sampling_of(replace(generation, seed=seed, max_new_tokens=wanted), HarmonyReader(()).stop_tokens)
        engine.submit(Request(name, tuple(tokens), sampling))
        for event in engine.stream([]):
            turn.tokens += len(event.tokens)
            for token in event.tokens:
                yield from map(_piece, reader.feed(token))
            if event.finish is not None:
                turn.finish = event.finish.value
            if self._should_stop():
                engine.cancel(name)
        yield from map(_piece, reader.flush())
        if turn.finish == Finish.stop.value and turn.calls:
            turn.finish = "tool_calls"

    def close(self) -> None:
        """Let the other ranks go: with the step after it they stop following."""
        self._session.engine.release()
        self._session.engine.step()


def _piece(delta: Delta) -> Piece:
    if delta.recipient is None:
        return Piece(delta.channel, delta.text)
    return Piece("call", delta.text, tool_name(delta.recipient), delta.call_id)
