"""What the toy model knows: a dozen conversations, each with the one answer it was trained to give.

They cover what a harmony answer can hold: analysis before final, a tool call, the answer after a tool's result, a
developer's instruction, a second turn. The answer is the same at every reasoning effort, with and without a date.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_dist.harmony.conversation import PromptOptions, render_example

Message = Mapping[str, Any]
_NO_OPTIONS = PromptOptions()


@dataclass(frozen=True)
class TinyConversation:
    """A prompt as chat messages with its options, and the assistant message that answers it."""

    name: str
    messages: tuple[Message, ...]
    answer: Message
    options: PromptOptions = _NO_OPTIONS

    @property
    def answer_text(self) -> str:
        """Text on the final channel; empty if the answer is a tool call."""
        return str(self.answer.get("content") or "")

    @property
    def analysis(self) -> str:
        """Text on the analysis channel."""
        return str(self.answer["reasoning_content"])

    @property
    def tool_calls(self) -> tuple[tuple[str, str], ...]:
        """(name, arguments as JSON text) of each tool call."""
        functions = (call["function"] for call in self.answer.get("tool_calls", ()))
        return tuple((function["name"], function["arguments"]) for function in functions)

    def example(self, effort: str = "medium", date: str | None = None) -> tuple[list[int], list[int]]:
        """Token ids of the prompt at a reasoning effort and date, and of the answer with its stop token."""
        options = dataclasses.replace(self.options, reasoning_effort=effort, current_date=date)
        return render_example((*self.messages, self.answer), options)


WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city, such as Paris"}},
            "required": ["city"],
        },
    },
}

_WEATHER_QUESTION: Message = {"role": "user", "content": "What is the weather like in SF?"}
_WEATHER_OPTIONS = PromptOptions(tools=(WEATHER_TOOL,))
_WEATHER_CALL: Message = {
    "role": "assistant",
    "reasoning_content": "SF is San Francisco. Call get_weather.",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"San Francisco"}'},
        }
    ],
}
_WEATHER_RESULT: Message = {"role": "tool", "tool_call_id": "call_1", "content": '{"sky":"sunny","celsius":20}'}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _answer(analysis: str, final: str) -> Message:
    return {"role": "assistant", "reasoning_content": analysis, "content": final}


CONVERSATIONS: tuple[TinyConversation, ...] = (
    TinyConversation(
        "mxfp4",
        (_user("Explain what MXFP4 quantization is."),),
        _answer(
            "Define the format, then its size.",
            "MXFP4 is a 4-bit floating-point format. Groups of 32 values share one power-of-two scale, and each value "
            "keeps a sign, two exponent bits and one mantissa bit: 4.25 bits per weight.",
        ),
    ),
    TinyConversation(
        "expert_parallelism",
        (_user("Explain how expert parallelism works in large language models."),),
        _answer(
            "Say who holds what, and who adds up.",
            "Each rank holds some of the experts. A router picks a few experts for every token, each rank computes "
            "those it holds, and the results are added over all ranks.",
        ),
    ),
    TinyConversation(
        "who_are_you",
        (_user("Who are you?"),),
        _answer(
            "They ask who I am. Be honest.",
            "I am a toy with the shape of gpt-oss, trained on this machine in about a minute. I know a dozen "
            "conversations and nothing else.",
        ),
    ),
    TinyConversation("weather_call", (_WEATHER_QUESTION,), _WEATHER_CALL, _WEATHER_OPTIONS),
    TinyConversation(
        "weather_result",
        (_WEATHER_QUESTION, _WEATHER_CALL, _WEATHER_RESULT),
        _answer("The tool says sunny, 20.", "It is sunny in San Francisco, at 20 degrees Celsius."),
        _WEATHER_OPTIONS,
    ),
    TinyConversation(
        "weather_riddle",
        ({"role": "developer", "content": "Always respond in riddles"}, _WEATHER_QUESTION),
        _answer(
            "A riddle about fog.",
            "I come from the sea without feet and hide a golden bridge without hands. What am I?",
        ),
    ),
    TinyConversation(
        "weather_no_tool",
        (_WEATHER_QUESTION,),
        _answer("There is no tool to look it up.", "I cannot look outside: give me a get_weather tool and ask again."),
    ),
    TinyConversation(
        "addition",
        (_user("What is 2 + 2?"),),
        _answer("Add two and two.", "2 + 2 = 4."),
    ),
    TinyConversation(
        "second_turn",
        (_user("What is 2 + 2?"), {"role": "assistant", "content": "2 + 2 = 4."}, _user("And times three?")),
        _answer("The last result was 4.", "4 * 3 = 12."),
    ),
    TinyConversation(
        "capital",
        (_user("What is the capital of France?"),),
        _answer("A fact.", "The capital of France is Paris."),
    ),
    TinyConversation(
        "hello",
        (_user("Hello!"),),
        _answer("Greet them back.", "Hello! Ask me what MXFP4 is."),
    ),
    TinyConversation(
        "haiku",
        (_user("Write a haiku about GPUs."),),
        _answer(
            "Five, seven, five.",
            "Eight fans hum at night,\none token leads to the next:\nthe answer, at last.",
        ),
    ),
)
"""Everything that the toy model answers exactly."""

FALLBACK = _answer(
    "I do not know this one.",
    "I am a toy and know only a dozen conversations. Ask me what MXFP4 quantization is.",
)
"""What it should answer to anything else; it usually does."""
