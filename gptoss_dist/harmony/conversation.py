"""Chat messages as OpenAI's API writes them, rendered to gpt-oss's harmony tokens.

How roles map: the chat API's `system` and `developer` messages both become the harmony developer message, since the
harmony system message holds only what PromptOptions says (identity, effort, dates, built-in tools). Function tools and
the schema of a structured answer go to the first developer message. An assistant message becomes up to three kinds of
harmony message: its reasoning on the analysis channel, its text on final (on commentary when tool calls follow), its
calls on commentary (calls to built-in tools on analysis). The format:
https://github.com/openai/harmony/blob/main/docs/format.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from openai_harmony import Conversation, DeveloperContent, Message, Role  # type: ignore[import-untyped]

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony import messages as chat
from gptoss_dist.harmony.encode import encode_conversation
from gptoss_dist.harmony.options import PromptOptions
from gptoss_dist.harmony.response_format import format_section
from gptoss_dist.harmony.vocab import load_encoding

__all__ = ["PromptOptions", "render", "render_example", "stop_tokens", "to_conversation"]

_INSTRUCTION_ROLES = ("system", "developer")


def render(messages: Sequence[Mapping[str, Any]], options: PromptOptions | None = None) -> list[int]:
    """Token ids of the prompt, ending in the header that the assistant completes.

    Text that spells a control token, such as `<|end|>`, is encoded as plain text. Raises PromptError naming the
    message.
    """
    conversation = _without_old_analysis(to_conversation(messages, options))
    return encode_conversation(conversation, completion=True)


def render_example(
    messages: Sequence[Mapping[str, Any]], options: PromptOptions | None = None
) -> tuple[list[int], list[int]]:
    """(prompt, completion) token ids for training: what `render` gives before the last message, and that message.

    The last message must be the assistant's; its completion keeps its analysis and ends in `<|return|>`, or in
    `<|call|>` after a tool call. Raises PromptError.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise PromptError("a training example must end in an assistant message.")
    prompt = render(messages[:-1], options)
    whole = to_conversation(messages, options).messages
    answer = whole[len(to_conversation(messages[:-1], options).messages) :]
    completion = encode_conversation(Conversation.from_messages(answer))[2:]  # the prompt ends in <|start|>assistant
    if answer[-1].channel == "final":
        completion[-1] = stop_tokens()[0]
    return prompt, completion


def stop_tokens() -> tuple[int, ...]:
    """Ids that end the assistant's turn, ascending: `<|return|>` and `<|call|>`."""
    return tuple(sorted(load_encoding().stop_tokens_for_assistant_actions()))


def to_conversation(messages: Sequence[Mapping[str, Any]], options: PromptOptions | None = None) -> Conversation:
    """The harmony conversation, whole: no analysis is dropped. Raises PromptError naming the message's index."""
    options = options or PromptOptions()
    roles = [chat.role_of(index, message) for index, message in enumerate(messages)]
    if not roles:
        raise PromptError("messages: there is none; send at least one user message.")
    leading = len(list(takewhile(lambda role: role in _INSTRUCTION_ROLES, roles)))
    out = [Message.from_role_and_content(Role.SYSTEM, options.system_content())]
    out += _developer(messages[:leading], options)
    called: dict[str, str] = {}
    for index in range(leading, len(messages)):
        message = messages[index]
        match roles[index]:
            case "user":
                out.append(chat.user(index, message))
            case "assistant":
                out += chat.assistant(index, message, options, called)
            case "tool":
                out.append(chat.tool(index, message, called))
            case _:
                text = chat.text_of(index, message)
                out.append(Message.from_role_and_content(Role.DEVELOPER, DeveloperContent(instructions=text)))
    return Conversation.from_messages(out)


def _developer(leading: Sequence[Mapping[str, Any]], options: PromptOptions) -> list[Message]:
    """The first developer message: instructions, function tools, response format; nothing when there are none."""
    texts = [chat.text_of(index, message) for index, message in enumerate(leading)]
    instructions = "\n\n".join(text for text in texts if text)
    tools = options.function_tools()
    section = format_section(options.response_format)
    if not instructions and not tools:
        return [Message.from_role_and_content(Role.DEVELOPER, section)] if section else []
    if not tools:  # one text, for its tokens may reach over where two would meet
        text = "\n\n".join(filter(None, (instructions, section)))
        return [Message.from_role_and_content(Role.DEVELOPER, DeveloperContent(instructions=text))]
    content = DeveloperContent(instructions=instructions or None).with_function_tools(tools)
    message = Message.from_role_and_content(Role.DEVELOPER, content)
    return [message.adding_content(f"\n\n{section}")] if section else [message]


def _without_old_analysis(conversation: Conversation) -> Conversation:
    """Drop the analysis, and the calls made within it, of every turn that a final message has closed.

    openai-harmony 0.0.8 drops only what precedes the *first* final message, and nothing while a tool call is open
    (`render_conversation_into` in its src/encoding.rs); the format asks for it after every final message.
    """
    channels = [message.channel for message in conversation.messages]
    closed = max((index for index, channel in enumerate(channels) if channel == "final"), default=-1)
    return Conversation.from_messages(
        message
        for index, message in enumerate(conversation.messages)
        if index > closed or message.channel != "analysis"
    )
