"""A conversation under way: its settings, its messages, and what the next answer is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.renderable import renderable
from gptoss_dist.schema.generation import Effort

Message = dict[str, Any]


@dataclass
class Conversation:
    """Messages as OpenAI's chat API writes them, without the instructions, which may change between turns."""

    effort: Effort = Effort.medium
    system: str | None = None
    tools: tuple[Message, ...] = ()
    date: str | None = None
    messages: list[Message] = field(default_factory=list)

    def prompt(self) -> list[Message]:
        """What is sent: instructions first; calls that the model got wrong as text that every reader takes."""
        instructions = [{"role": "system", "content": self.system}] if self.system else []
        return [*instructions, *map(renderable, self.messages)]

    def tokens(self) -> list[int]:
        """The prompt as gpt-oss reads it. Raises PromptError."""
        options = PromptOptions(reasoning_effort=self.effort.value, current_date=self.date, tools=self.tools)
        return render(self.prompt(), options)

    def say(self, text: str) -> None:
        """The user's turn."""
        self.messages.append({"role": "user", "content": text})

    def add_result(self, call: Mapping[str, Any], text: str) -> None:
        """What a tool gave for one call of the last answer."""
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})

    def drop_open_calls(self) -> None:
        """Take back the calls of the last answer that have no result: no prompt may hold them.

        What the answer said beside them stays; if that is nothing, it goes too.
        """
        places = [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not places or "tool_calls" not in (answer := self.messages[places[-1]]):
            return
        answered = {message.get("tool_call_id") for message in self.messages[places[-1] :]}
        answer["tool_calls"] = [call for call in answer["tool_calls"] if call["id"] in answered]
        if not answer["tool_calls"]:
            del answer["tool_calls"]
            if not (answer["content"] or answer.get("reasoning_content")):
                del self.messages[places[-1]]

    def drop_open_question(self) -> None:
        """Take back the last question if nothing came after it."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def reset(self) -> None:
        """Forget all turns; the settings stay."""
        self.messages.clear()

    def take_back(self) -> str | None:
        """Forget the last question and all that came after it; the question, if there was one."""
        places = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            return None
        question = str(self.messages[places[-1]]["content"])
        del self.messages[places[-1] :]
        return question


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes. `channel`: analysis, final, commentary; or call, with the tool's name."""

    channel: str
    text: str
    name: str | None = None
    call_id: str | None = None


@dataclass
class Turn:
    """An answer while it comes, and the message that it becomes."""

    texts: dict[str, str] = field(default_factory=dict)
    calls: dict[str, Message] = field(default_factory=dict)
    tokens: int = 0
    """Tokens of the answer, if whoever answers counts them."""
    finish: str | None = None

    @property
    def wants_results(self) -> bool:
        """Whether it ended with calls that are whole."""
        return bool(self.calls) and self.finish == "tool_calls"

    def take(self, piece: Piece) -> None:
        """Add a piece."""
        if piece.channel != "call" or piece.call_id is None:
            self.texts[piece.channel] = self.texts.get(piece.channel, "") + piece.text
            return
        function = {"name": piece.name or "", "arguments": ""}
        call = self.calls.setdefault(piece.call_id, {"id": piece.call_id, "type": "function", "function": function})
        call["function"]["arguments"] += piece.text

    def message(self) -> Message:
        """The assistant's message, for the next prompt; an answer that said nothing has an empty text."""
        text = self.texts.get("final", self.texts.get("commentary"))
        if text is None and not self.calls and not self.texts.get("analysis"):
            text = ""
        message: Message = {"role": "assistant", "content": text}
        if "analysis" in self.texts:
            message["reasoning_content"] = self.texts["analysis"]
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
        return message
