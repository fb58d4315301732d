"""`gptoss prefetch WHAT`: bring what a run needs from outside onto this machine, verified."""

from __future__ import annotations

from typing import Any

from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.vocab import VOCABULARY_SHA256, prefetch_vocabulary
from gptoss_dist.jobs.table import Result
from gptoss_dist.schema import PrefetchConf, RunConf

KINDS = ("vocab",)


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    assert isinstance(run.job, PrefetchConf)
    return Result(run_prefetch(run.job.what))


def run_prefetch(what: str) -> dict[str, Any]:
    """Fetch `what` and say where it lies, where it came from, its checksum and what was tried before.

    Raises ConfigError for a word that is not in KINDS, VocabularyError when no source gave the vocabulary.
    """
    if what not in KINDS:
        raise ConfigError(f"prefetch: {what!r} is not known here. There is: {', '.join(KINDS)}.")
    found = prefetch_vocabulary()
    return {"vocab": str(found.path), "source": found.source, "sha256": VOCABULARY_SHA256, "tried": list(found.tried)}
