"""gpt-oss inside a person's own script, under torchrun or alone:

    import gptoss_dist

    with gptoss_dist.load("gpt_oss_120b", plan="tp") as model:
        reply = model.chat([{"role": "user", "content": "Who are you?"}])
        print(reply.final)

Every rank runs the same script and makes the same calls with the same arguments; every rank gets the same result.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gptoss_dist.call_keys import change_generation
from gptoss_dist.calls import Calls
from gptoss_dist.config import choices, compose_run, export_staged
from gptoss_dist.engine.request import Finish
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.stream import Delta, Reader
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.jobs.generate import sampling_of
from gptoss_dist.jobs.readers import HarmonyReader
from gptoss_dist.launcher.env import export_rank_env, read_rank_env
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.session import Session, open_session
from gptoss_dist.shapes import EOS_TOKENS

Message = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One turn of the assistant; a text is None where the model opened no message on that channel."""

    final: str | None
    analysis: str | None
    commentary: str | None
    tool_calls: list[dict[str, str]]
    finish_reason: str
    tokens: tuple[int, ...]
    seed: int


def load(
    model: str | None = None,
    plan: str | None = None,
    *,
    overrides: Sequence[str] = (),
    conf: str | Path | None = None,
) -> Model:
    """Load a model over the ranks that run this script. Collective.

    `model`: a choice of `conf/model` (gpt_oss_120b, gpt_oss_20b, tiny), a folder, or a name on the hub; None: the
    default of this machine. `plan`: a choice of `conf/plan`; None: what a preset says, else auto. `overrides`: more
    words, as on the command line (`["kernels=reference", "generation.seed=1"]`). `conf`: a folder of more choices, as
    `--conf`. Raises what the command line would have printed, as GptOssDistError.
    """
    words = [*([] if plan is None else [f"plan={plan}"]), *overrides]
    extra = None if conf is None else user_path(conf, "conf")
    if model is not None and model in choices("model", extra):
        words.insert(0, f"model={model}")
    elif model is not None:
        words[:0] = ["model=gpt_oss_120b", f"model.path={model}"]
    env = read_rank_env(os.environ)
    if env is not None:
        export_rank_env(env, os.environ)
    run = compose_run(words, extra)
    export_staged(run, os.environ)
    return Model(open_session(run, env if env is not None and env.world_size > 1 else None))


class Model:
    """A loaded model.

    Sampling keys of every call, over what `generation` says: max_new_tokens, temperature, top_p, top_k, min_p, seed,
    stop, reasoning_effort; where neither says how many, 512 new tokens, or what the context leaves. Raises ConfigError
    for another key or a value that cannot be.
    """

    def __init__(self, session: Session) -> None:
        """Made by `load`."""
        self.session = session
        self._calls = Calls(session)

    def generate(
        self, prompt: str | Sequence[int], *, stop_tokens: Sequence[int] = EOS_TOKENS, **sampling: Any
    ) -> list[int]:
        """Continue a bare text or token ids, without a conversation around it; the new tokens.

        A token of `stop_tokens` is the last one; by default those at which transformers' `generate` ends for gpt-oss.
        """
        tokens = load_encoding().encode(prompt, disallowed_special=()) if isinstance(prompt, str) else _ids(prompt)
        generation = self._generation(sampling)
        if generation.stop:
            raise ConfigError("generate takes no stop texts: it gives tokens. stop_tokens, or chat with stop.")
        found = self._tokens(tokens, generation, tuple(stop_tokens), self._seed(generation))
        return [token for token, _ in found]

    def chat(self, messages: Sequence[Message], *, options: PromptOptions | None = None, **sampling: Any) -> Reply:
        """Answer a conversation of OpenAI-style messages; `options` hold effort, tools and dates."""
        generation = self._generation(sampling)
        options = _with_effort(options, generation, sampling)
        reader = HarmonyReader(generation.stop)
        seed, tokens, finish = self._seed(generation), [], Finish.length
        at_once = not generation.stop  # a stop text ends the answer where it comes
        found = self._tokens(render(messages, options), generation, reader.stop_tokens, seed, at_once=at_once)
        for token, reason in found:
            tokens.append(token)
            finish = reason or finish
            reader.feed(token)
            if reader.stopped:
                self._calls.cancel()
        answer = reader.finish(finish)
        return Reply(**answer, tokens=tuple(tokens), seed=seed)

    def stream(
        self, messages: Sequence[Message], *, options: PromptOptions | None = None, **sampling: Any
    ) -> Generator[Delta]:
        """The deltas of an answer as they come.

        Closing it (`break` does where nothing else holds it) ends the answer, and so does the next call. Every rank
        must read it equally far.
        """
        generation = self._generation(sampling)
        if generation.stop:
            raise ConfigError("stream takes no stop texts; chat does.")
        options = _with_effort(options, generation, sampling)
        reader, stop_tokens = Reader(), HarmonyReader(()).stop_tokens
        seed = self._seed(generation)
        tokens = self._tokens(render(messages, options), generation, stop_tokens, seed, at_once=False)
        with closing(tokens):
            for token, _ in tokens:
                yield from reader.feed(token)
        yield from reader.flush()

    def __call__(self, prompt: Any, *, options: PromptOptions | None = None, **sampling: Any) -> list[Any]:
        """As transformers' text-generation pipeline: `[{"generated_text": …}]`.

        `prompt`: a text, which comes back with its continuation; messages, which come back with one more; or a list of
        either, which gives a list of such lists.
        """
        if isinstance(prompt, str):
            tokens = self.generate(prompt, **sampling)
            shown = tokens[:-1] if tokens[-1] in EOS_TOKENS else tokens
            return [{"generated_text": prompt + load_encoding().decode(shown)}]
        if all(isinstance(one, str | list | tuple) for one in prompt):
            return [self(one, options=options, **sampling) for one in prompt]
        reply = self.chat(prompt, options=options, **sampling)
        message: Message = {"role": "assistant", "content": reply.final}
        if reply.analysis is not None:
            message["thinking"] = reply.analysis
        if reply.tool_calls:
            functions = [{"name": call["name"], "arguments": call["arguments"]} for call in reply.tool_calls]
            ids = [call["id"] for call in reply.tool_calls]
            message["tool_calls"] = [
                {"id": one, "type": "function", "function": function}
                for one, function in zip(ids, functions, strict=True)
            ]
        return [{"generated_text": [*prompt, message]}]

    @property
    def folder(self) -> Path:
        """The folder that the weights came from."""
        return self.session.loaded.checkpoint.folder

    @property
    def rank(self) -> int:
        """This process' rank; 0 where it is alone."""
        return self.session.group.rank

    def close(self) -> None:
        """Leave the group in step with the other ranks."""
        self._calls.close()
        self.session.close()

    def __enter__(self) -> Model:
        """For `with`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close, unless an error is on its way: other ranks may not come to the same place then."""
        if error is None:
            self.close()

    def _generation(self, sampling: dict[str, Any]) -> GenerationConf:
        return change_generation(self.session.run.generation, sampling)

    def _seed(self, generation: GenerationConf) -> int:
        return self.session.group.broadcast_object(sampling_of(generation, ()).seed)

    def _tokens(
        self,
        prompt: Sequence[int],
        generation: GenerationConf,
        stop_tokens: tuple[int, ...],
        seed: int,
        *,
        at_once: bool = True,
    ) -> Generator[tuple[int, Finish | None]]:
        """The tokens of one call; see `Calls.tokens`."""
        room = max(1, self.session.engine.context - len(prompt))
        sampling = sampling_of(replace(generation, seed=seed), stop_tokens, room)
        return self._calls.tokens(prompt, sampling, at_once=at_once)


def _ids(tokens: Sequence[int]) -> list[int]:
    """Token ids as plain numbers, also out of a tensor of one dimension."""
    try:
        return [int(one) for one in tokens]
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError("generate: a text or one row of token ids is needed. Of a batch [1, n] pass row 0.") from None


def _with_effort(options: PromptOptions | None, generation: GenerationConf, sampling: dict[str, Any]) -> PromptOptions:
    """The options of a prompt; an effort said with the call wins over theirs."""
    effort = generation.reasoning_effort.value
    if options is None:
        return PromptOptions(reasoning_effort=effort)
    return replace(options, reasoning_effort=effort) if "reasoning_effort" in sampling else options
