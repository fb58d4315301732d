"""The chat itself: read a line, answer it, until the user leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gptoss_dist.chat.commands import is_command, message_of, obey
from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.chat.interrupts import Interrupted
from gptoss_dist.chat.keyboard import Keyboard
from gptoss_dist.chat.screen import Screen
from gptoss_dist.engine.request import Finish
from gptoss_dist.errors import GptOssDistError

_KEYS = "Enter sends, Alt-Enter begins a new line, Ctrl-C ends an answer, /help lists commands."


class Model(Protocol):
    """Who answers: `LocalModel` or `RemoteModel`."""

    @property
    def name(self) -> str:
        """For the first line."""

    def idle(self) -> None:
        """Called while nobody asks."""

    def answer(self, conversation: Conversation, turn: Turn) -> Iterator[Piece]:
        """The next answer."""


class Chat:
    """One user, one conversation, one model."""

    def __init__(
        self, model: Model, conversation: Conversation, keyboard: Keyboard, screen: Screen, is_over: Callable[[], bool]
    ) -> None:
        """`is_over`: somebody else ended it (a signal)."""
        self._model, self._conversation, self._keyboard, self._screen = model, conversation, keyboard, screen
        self._is_over = is_over
        self._turns = self._tokens = 0

    def run(self) -> dict[str, Any]:
        """Talk until the input ends; what was said, for `--json`."""
        if self._screen.is_terminal:
            self._screen.note(f"{self._model.name}. {_KEYS}")
        while not self._is_over() and (line := self._next_line()) is not None:
            if is_command(line):
                said = obey(line, self._conversation)
                self._screen.note(said.text)
                if said.over:
                    break
                line = said.again or ""
            if line.strip():
                self._conversation.say(message_of(line))
                self._answer()
        return {"turns": self._turns, "completion_tokens": self._tokens, "messages": self._conversation.prompt()}

    def _next_line(self) -> str | None:
        try:
            return self._keyboard.read("> ")
        except Interrupted:  # the line is begun anew
            return ""

    def _answer(self) -> None:
        """Whatever ends the answer, what is whole of it stays in the conversation."""
        failed = False
        try:
            self._rounds()
        except Interrupted:
            self._screen.note("Stopped.")
        except GptOssDistError as error:
            self._screen.note(f"error: {error}")
            failed = True
        self._conversation.drop_open_calls()
        if failed:
            self._conversation.drop_open_question()

    def _rounds(self) -> None:
        """One answer, and as long as it calls tools whose results the user types, the next one."""
        while (turn := self._one_turn()).wants_results and not self._is_over():
            for call in turn.calls.values():
                if not _is_json(call["function"]["arguments"]):
                    self._screen.note(f"The arguments of {call['function']['name']} are no JSON.")
            for call in turn.calls.values():
                result = self._keyboard.read(f"{call['function']['name']} gives: ")
                if result is None:
                    return
                self._conversation.add_result(call, result)
        if turn.finish == "length":
            self._screen.note("Cut at generation.max_new_tokens, or at the model's context.")

    def _one_turn(self) -> Turn:
        """One answer. Raises Interrupted and GptOssDistError; what was said before is in the conversation then."""
        turn = Turn()
        try:
            with self._screen as screen:
                for piece in self._model.answer(self._conversation, turn):
                    turn.take(piece)
                    screen.show(piece)
        except KeyboardInterrupt:
            if not self._screen.is_terminal:  # who sends SIGINT to a chat that is a part of a script wants it to end
                raise
            turn.finish = Finish.cancelled.value
        except GptOssDistError:
            if turn.texts or turn.calls:
                self._conversation.messages.append(turn.message())
            raise
        self._turns += 1
        self._tokens += turn.tokens
        self._conversation.messages.append(turn.message())
        if turn.finish == Finish.cancelled.value:
            raise Interrupted
        return turn


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
