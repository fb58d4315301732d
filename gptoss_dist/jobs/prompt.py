"""From the keys of `job=generate` to prompt tokens: read on rank 0, rendered by harmony or the chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.model.tokenizer import load_tokenizer
from gptoss_dist.schema import GenerateConf, RunConf, Template

Message = dict[str, Any]


def prompt_tokens(run: RunConf, job: GenerateConf, folder: Path) -> list[int]:
    """The tokens that the model continues. `folder` holds the tokenizer, for the templates that use it.

    Raises PromptError that names the file or the message.
    """
    if job.template is Template.raw:
        return list(load_tokenizer(folder)(_text(run, job))["input_ids"])
    messages, tools = _conversation(run, job)
    options = PromptOptions(
        reasoning_effort=run.generation.reasoning_effort.value,
        current_date=job.date,
        builtin_tools=tuple(job.builtin_tools),
        tools=tuple(tools),
    )
    if job.template is Template.harmony:
        return render(messages, options)
    rendered = load_tokenizer(folder).apply_chat_template(
        messages,
        tools=tools or None,
        add_generation_prompt=True,
        return_dict=False,
        reasoning_effort=options.reasoning_effort,
        builtin_tools=list(options.builtin_tools),
        current_date=options.current_date or "",
    )
    return list(rendered)


def _conversation(run: RunConf, job: GenerateConf) -> tuple[list[Message], list[Message]]:
    messages: list[Message] = []
    tools: list[Message] = []
    if job.messages:
        content = _read_json(job.messages, "job.messages")
        if isinstance(content, dict):
            tools = content.get("tools") or []
            content = content.get("messages")
        if not isinstance(content, list):
            raise PromptError(f'job.messages={job.messages}: holds no list of messages, [{{"role": …, "content": …}}].')
        messages = content
    else:
        messages = [{"role": "user", "content": _text(run, job)}]
    if job.tools:
        tools = tools + _read_list(job.tools, "job.tools")
    instructions = [{"role": "system", "content": text} for text in (job.system, job.developer) if text]
    return instructions + messages, tools


def _text(run: RunConf, job: GenerateConf) -> str:
    if run.prompt is not None:
        return run.prompt
    if job.file == "-" or (job.file is None and not sys.stdin.isatty()):
        text = sys.stdin.read()
    elif job.file is not None:
        text = _read(job.file, "job.file")
    else:
        raise PromptError('there is no prompt. Give prompt="…", job.file=FILE, job.messages=FILE, or text on stdin.')
    if not text.strip():
        raise PromptError('the prompt is empty. Give prompt="…", job.file=FILE, job.messages=FILE, or text on stdin.')
    return text.removesuffix("\n")


def _read(file: str, key: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{key}={file}: cannot be read: {error}.") from None


def _read_json(file: str, key: str) -> Any:
    try:
        return json.loads(_read(file, key))
    except json.JSONDecodeError as error:
        raise PromptError(f"{key}={file}: not JSON: {error}.") from None


def _read_list(file: str, key: str) -> list[Message]:
    content = _read_json(file, key)
    if not isinstance(content, list):
        raise PromptError(f"{key}={file}: holds no list.")
    return content
