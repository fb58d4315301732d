"""The lines that begin with a slash: they change the conversation instead of continuing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_dist.chat.conversation import Conversation
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.files import user_path
from gptoss_dist.jobs.inputs import list_of_objects, read_json
from gptoss_dist.schema.generation import Effort


@dataclass(frozen=True)
class Said:
    """What a command answers: a text, whether the chat is over, and a question to ask again."""

    text: str
    over: bool = False
    again: str | None = None


def is_command(line: str) -> bool:
    """Whether a line is for the chat itself; two slashes begin a message with a slash."""
    return line.startswith("/") and not line.startswith("//")


def message_of(line: str) -> str:
    """The message that a line is, its escape taken off."""
    return line.removeprefix("/") if line.startswith("//") else line


def obey(line: str, conversation: Conversation) -> Said:
    """Carry out a line for which `is_command` holds; what was wrong is the answer, and nothing is changed then."""
    word, _, rest = line[1:].strip().partition(" ")
    command = _COMMANDS.get(word)
    if command is None:
        return Said(f"There is no /{word}. {_help(conversation, '').text}")
    try:
        return command[0](conversation, rest.strip())
    except GptOssDistError as error:
        return Said(str(error))
    except OSError as error:
        return Said(f"{error.filename}: {error.strerror}")


def _help(_: Conversation, __: str) -> Said:
    width = max(len(text) for _, text, _ in _COMMANDS.values())
    return Said("\n".join(f"{text:{width}s}  {what}" for _, text, what in _COMMANDS.values()))


def _reset(conversation: Conversation, _: str) -> Said:
    conversation.reset()
    return Said("A new conversation.")


def _effort(conversation: Conversation, rest: str) -> Said:
    if rest not in Effort.__members__:
        return Said(f"/effort takes one of {', '.join(Effort.__members__)}; it is {conversation.effort.value}.")
    conversation.effort = Effort[rest]
    return Said(f"Reasoning effort: {rest}.")


def _system(conversation: Conversation, rest: str) -> Said:
    conversation.system = rest or None
    return Said(f"Instructions: {rest}" if rest else "No instructions.")


def _tools(conversation: Conversation, rest: str) -> Said:
    content = list_of_objects(read_json(rest, "/tools"), rest) if rest else []
    before, conversation.tools = conversation.tools, tuple(content)
    try:
        Conversation(tools=conversation.tools, messages=[{"role": "user", "content": "?"}]).tokens()
    except GptOssDistError as error:
        conversation.tools = before
        return Said(str(error))
    names = ", ".join(tool["function"]["name"] for tool in content)
    return Said(f"Tools: {names or 'none'}.")


def _retry(conversation: Conversation, _: str) -> Said:
    question = conversation.take_back()
    return Said("" if question else "There is no question to ask again.", again=question)


def _undo(conversation: Conversation, _: str) -> Said:
    question = conversation.take_back()
    return Said(f"Taken back: {question}" if question else "There is no question to take back.")


def _save(conversation: Conversation, rest: str) -> Said:
    if not rest:
        return Said("/save needs a file to write.")
    content = {"messages": conversation.prompt(), "tools": list(conversation.tools)}
    user_path(rest, "/save").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return Said(
        f"Written: {rest}, {len(conversation.messages)} messages; gptoss generate job.messages={rest} reads it."
    )


def _quit(_: Conversation, __: str) -> Said:
    return Said("", over=True)


_COMMANDS: dict[str, tuple[Callable[[Conversation, str], Said], str, str]] = {
    "help": (_help, "/help", "this list"),
    "effort": (_effort, "/effort low|medium|high", "how long the model thinks"),
    "system": (_system, "/system TEXT", "instructions from the next turn on; without a text: none"),
    "tools": (_tools, "/tools FILE", "function tools from a JSON file; without a file: none"),
    "reset": (_reset, "/reset", "a new conversation"),
    "retry": (_retry, "/retry", "ask the last question again"),
    "undo": (_undo, "/undo", "forget the last question and its answer"),
    "save": (_save, "/save FILE", "write the conversation as JSON"),
    "quit": (_quit, "/quit", "end; so does Ctrl-D"),
}
