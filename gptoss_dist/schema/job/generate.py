"""The keys of `job=generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gptoss_dist.schema.job.base import JobConf


class Template(Enum):
    """How a conversation becomes tokens: by openai-harmony, by the tokenizer's chat template, or the bare text."""

    harmony = "harmony"
    tokenizer = "tokenizer"
    raw = "raw"


@dataclass
class GenerateConf(JobConf):
    """One answer. The prompt is `prompt=…`, or `file` (`-`: standard input), or `messages` (a JSON file)."""

    file: str | None = None
    messages: str | None = None
    system: str | None = None
    developer: str | None = None
    tools: str | None = None
    builtin_tools: list[str] = field(default_factory=list)
    date: str | None = None
    template: Template = Template.harmony
    stream: bool = True
    show_analysis: bool = True
