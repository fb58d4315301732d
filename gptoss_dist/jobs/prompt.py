"""From the keys of `job=generate` to prompt tokens: read on rank 0, rendered by harmony or the chat template."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, TextIO

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_text
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.jobs.chat_template import render_by_chat_template
from gptoss_dist.jobs.inputs import list_of_objects, read_json, read_text
from gptoss_dist.model.tokenizer import load_tokenizer
from gptoss_dist.schema.job.generate import GenerateConf, Template
from gptoss_dist.schema.run import RunConf

Message = dict[str, Any]

_WAYS = 'Give prompt="…", job.file=FILE, job.messages=FILE, or text on stdin.'


def prompt_tokens(run: RunConf, job: GenerateConf, folder: Path) -> list[int]:
    """The tokens that the model continues. `folder` holds the tokenizer, for the templates that use it.

    Raises PromptError that names the file or the message.
    """
    if job.template is Template.raw:
        text = check_text(_text(run, job), "the prompt")
        return list(load_tokenizer(folder)(text)["input_ids"])
    messages, tools = _conversation(run, job)
    options = PromptOptions(
        reasoning_effort=run.generation.reasoning_effort.value,
        current_date=job.date,
        builtin_tools=tuple(job.builtin_tools),
        tools=tuple(tools),
    )
    if job.template is Template.harmony:
        return render(messages, options)
    return render_by_chat_template(messages, options, folder)


def check_prompt(run: RunConf, job: GenerateConf) -> None:
    """Raise PromptError for a prompt that cannot be used, before minutes go into loading; stdin is kept for the job."""
    folder = Path(run.model.path)
    if job.template is Template.harmony or (folder / "tokenizer.json").is_file():  # on the hub it is known later
        prompt_tokens(run, job, folder)
    elif job.template is Template.raw:
        _text(run, job)
    else:
        _conversation(run, job)


def _conversation(run: RunConf, job: GenerateConf) -> tuple[list[Message], list[Message]]:
    messages: list[Message] = []
    tools: list[Message] = []
    if job.messages is not None:
        content = read_json(job.messages, "job.messages")
        if isinstance(content, dict):
            tools = list_of_objects(content.get("tools") or [], f"job.messages={job.messages}: tools")
            content = content.get("messages")
        messages = list_of_objects(content, f"job.messages={job.messages}: messages")
    else:
        messages = [{"role": "user", "content": _text(run, job)}]
    if job.tools is not None:
        tools = tools + list_of_objects(read_json(job.tools, "job.tools"), f"job.tools={job.tools}")
    instructions = [{"role": "system", "content": text} for text in (job.system, job.developer) if text]
    return instructions + messages, tools


def _text(run: RunConf, job: GenerateConf) -> str:
    if run.prompt is not None:
        text = run.prompt
    elif job.file not in (None, "-"):
        text = read_text(str(job.file), "job.file").removesuffix("\n")
    elif job.file == "-" or not _has_terminal():
        text = _read_stdin().removesuffix("\n")
    else:
        raise PromptError(f"there is no prompt. {_WAYS}")
    if not text.strip():
        raise PromptError(f"the prompt is empty. {_WAYS}")
    return text


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


@functools.lru_cache(maxsize=1)
def _whole(stream: TextIO) -> str:
    """All that a stream holds: a pipe gives it once, and it is asked for before loading and afterwards."""
    return stream.read()


def _read_stdin() -> str:
    if sys.stdin is None:  # closed by whoever started this process
        return ""
    try:
        return _whole(sys.stdin)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"the prompt on stdin cannot be read: {error}.") from None
