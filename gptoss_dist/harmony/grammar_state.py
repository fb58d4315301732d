"""A constrained output as it grows: its headers, its messages, and what may come next."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.harmony import grammar_headers
from gptoss_dist.harmony.grammar_headers import Headers, Node
from gptoss_dist.harmony.grammar_json import JsonText
from gptoss_dist.harmony.grammar_tokens import CALL, END, RETURN, START, mask_of, text_mask, token_ids, tokenizer
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.harmony.tools import FUNCTIONS
from gptoss_dist.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class Message:
    """A message that the turn may contain.

    recipient: the tool that it calls. schema: text of the JSON schema of its content; None is any text. lenient: see
    `check_schema`. ends: the tokens that may end it.
    """

    channel: str
    recipient: str | None = None
    schema: str | None = None
    lenient: bool = False
    ends: tuple[int, ...] = (END,)

    @property
    def content_type(self) -> str:
        """What its header may say of its content, for grammar_headers."""
        if self.recipient is None:
            return "answer" if self.schema is not None else "text"
        return "json" if self.recipient.startswith(f"{FUNCTIONS}.") else "code"


@dataclass(frozen=True)
class Constraint:
    """What a request allows: data only, small to pickle. `start` makes what follows one output."""

    messages: tuple[Message, ...]

    def start(self, prompt: Sequence[int]) -> State:
        """The state at the end of `prompt`, whose last message the assistant has begun; compiles what it needs.

        A prompt may go on after `<|start|>assistant`: that part is read as if it had been generated. Raises ConfigError
        when there is no such place, GptOssDistError when that part is not allowed.
        """
        opening = (START, token_ids()[b"assistant"])
        begin = next((at for at in range(len(prompt) - 2, -1, -1) if tuple(prompt[at : at + 2]) == opening), None)
        if begin is None or START in prompt[begin + 1 :]:
            raise ConfigError("constrained output: the prompt does not end in an open message of the assistant.")
        tokenizer()
        state = State(self)
        for token in prompt[begin + 2 :]:
            state.accept(token)
        return state


class State:
    """One output, token by token. `allowed` and `accept` take turns; `accept` may be called without `allowed`."""

    def __init__(self, constraint: Constraint) -> None:
        """Stand after `<|start|>assistant`."""
        self._messages = constraint.messages
        self._headers = _headers(constraint.messages)
        self._header: Node | None = self._headers.first
        self._message: Message | None = None
        self._json: JsonText | None = None
        self._mask: torch.Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether the turn has ended."""
        return self._header is None and self._message is None

    def allowed(self) -> torch.Tensor:
        """The tokens that may come next, torch.bool [vocabulary] on the host. Not to be written to.

        After the end of the turn only `<|return|>` and `<|call|>` are, and change nothing. All False, with a line in
        the log, where a schema turned out too complex for llguidance's limits: this output cannot go on.
        """
        if self._mask is None:
            self._mask = self._compute()
            if self._json is not None and self._json.failure:
                _log.error("constrained output stops %s: %s.", self._place(), self._json.failure)
        return self._mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen. Raises GptOssDistError, and stays as it is, when the constraint forbids it.

        In JSON, a token that spells allowed text is accepted even where `allowed` names only the usual way to cut it.
        """
        if self.finished:
            taken = token in (RETURN, CALL)
        elif self._message is None:
            taken = self._read_header(token)
        elif token >= FIRST_CONTROL:
            taken = self._end(token)
        else:
            taken = self._json is None or self._json.accept(token)
        if not taken:
            raise GptOssDistError(f"token {token} is not allowed {self._place()}; apply the mask before sampling.")
        self._mask = None

    def _compute(self) -> torch.Tensor:
        if self._header is not None:
            return self._header.allowed()
        if self._message is None:
            return mask_of((RETURN, CALL))
        return text_mask(self._message.ends) if self._json is None else self._json.allowed(self._message.ends)

    def _read_header(self, token: int) -> bool:
        node = self._header.after(token) if self._header is not None else None
        if node is None:
            return False
        self._header = node
        if node.message is not None:
            message = self._messages[node.message]
            self._json = None if message.schema is None else JsonText(message.schema, message.lenient)
            self._header, self._message = None, message
        return True

    def _end(self, token: int) -> bool:
        message = self._message
        if message is None or token not in message.ends or (self._json is not None and not self._json.is_whole()):
            return False
        self._message, self._json = None, None
        self._header = self._headers.following if token == END else None
        return True

    def _place(self) -> str:
        if self.finished:
            return "after the end of the turn"
        if self._message is None:
            return "in the header of a message"
        kind = "text" if self._json is None else "JSON"
        to = f" to {self._message.recipient}" if self._message.recipient else ""
        return f"in the {kind} on channel {self._message.channel}{to}"


@functools.lru_cache(maxsize=64)
def _headers(messages: tuple[Message, ...]) -> Headers:
    return grammar_headers.build([(each.channel, each.recipient, each.content_type) for each in messages])
