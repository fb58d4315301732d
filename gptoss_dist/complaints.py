"""What is wrong with a word on the command line, in one line that names it and what may have been meant."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from yaml import YAMLError  # type: ignore[import-untyped]

from gptoss_dist.schema.run import GROUPS, JOBS, RunConf


def known_keys(job: str | None = None) -> list[str]:
    """Every key there is; with `job`, of that job's own keys alone."""
    keys = [one.name for one in dataclasses.fields(RunConf)]
    for one in dataclasses.fields(RunConf):
        if one.default_factory is not dataclasses.MISSING:
            keys += [f"{one.name}.{inner.name}" for inner in dataclasses.fields(one.default_factory())]
    nodes = JOBS.values() if job not in JOBS else [JOBS[job]]
    return keys + [f"job.{one.name}" for node in nodes for one in dataclasses.fields(node)]


def complaint(error: Exception, overrides: Sequence[str], job: str) -> str:
    """Hydra's or OmegaConf's complaint as one line that names the word it is about."""
    details = f"{error}\n{error.__cause__ or ''}"
    first = first_sentence(error.__cause__ or error)
    for word in sorted(overrides, key=lambda one: -len(one.partition("=")[0])):
        key = word.partition("=")[0]
        if key not in details:
            continue
        if key not in known_keys(job) and key not in GROUPS:
            return no_such_key(word, job)
        return f"{shown(word)}: {first}"
    return first


def no_such_key(word: str, job: str) -> str:
    """For a `key=value` whose key there is not, or not in `job`."""
    key = word.partition("=")[0]
    hint = _nearest(key, job)
    if key in known_keys():
        return f"{shown(word)}: the job {job} has no such key. {hint}"
    return f"{shown(word)}: there is no key {shown(key)}. {hint}"


def no_such_job(word: str) -> str:
    """For a word that is no `key=value`."""
    near = difflib.get_close_matches(word, JOBS, n=1)
    hint = f"Did you mean {near[0]}?" if near else 'A prompt: prompt="…".'
    return f"{word!r} is neither a job nor key=value. Jobs: {', '.join(JOBS)}. {hint} See gptoss --help."


def shown(word: str) -> str:
    """A word on one line, whatever is in it."""
    return word if word.isprintable() else repr(word)


def first_sentence(error: BaseException) -> str:
    """The first line of a message, or all of one about a YAML file; two lines where the first only introduces."""
    lines = str(error).split("\n")
    count = len(lines) if isinstance(error, YAMLError) else 1 + lines[0].endswith(":")
    return " ".join(" ".join(lines[:count]).split())


def _nearest(key: str, job: str) -> str:
    """What may have been meant: a key of the same group, one that is `key` without its group, or what looks like it."""
    known = [one for one in known_keys(job) if not one.endswith(".name")]
    group, _, last = key.rpartition(".")
    beside = {one.rpartition(".")[2]: one for one in known if group and one.rpartition(".")[0] == group}
    if near := difflib.get_close_matches(last, beside, n=1):
        return f"Did you mean {beside[near[0]]}?"
    if beside:
        return f"{group} has: {', '.join(beside)}."
    near = [one for one in known if one.endswith(f".{key}")]
    near += difflib.get_close_matches(key, known + list(GROUPS), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else "See gptoss --help."
