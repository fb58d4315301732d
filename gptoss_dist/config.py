"""From words on a command line to one checked, frozen `RunConf`.

Hydra's compose API reads `conf/` (no files written, no handlers, the same in every rank); OmegaConf turns the result
into objects once; `check` looks at what keys mean together; then nothing can be set any more. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptoss_dist.checks import check
from gptoss_dist.devices import visible_gpus
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema import JOBS, RunConf

GROUPS = ("model", "plan", "kernels", "generation", "cluster", "job", "preset")
_TEXT_KEYS = ("prompt", "job.system", "job.developer", "job.file", "job.messages", "job.tools", "job.out", "model.path")


def conf_folder() -> Path:
    """The folder of YAML choices: inside the package when installed from a wheel, beside it in a checkout."""
    inside = Path(__file__).resolve().parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def choices(group: str, extra: Path | None = None) -> list[str]:
    """The names that `group=NAME` takes, sorted; `extra` is a second folder laid out like `conf/`."""
    folders = [conf_folder()] + ([extra] if extra else [])
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def compose_run(words: Sequence[str], extra: Path | None = None) -> RunConf:
    """The checked, frozen run that `words` (`key=value`, `group=choice`) describe.

    `extra` is a folder of more choices, laid out like `conf/`. Without a `model=` the model is `tiny` on a machine that
    shows no GPU. Raises ConfigError with one line that names the key, what was wrong and what would be right.
    """
    texts, overrides = _split_texts(words)
    if not visible_gpus() and not any(word.startswith(("model=", "preset=")) for word in overrides):
        overrides.insert(0, "model=tiny")
    run = _to_objects(overrides, extra)
    for key, value in texts.items():
        _set_text(run, key, value)
    check(run)
    run.freeze()
    return run


def as_dict(run: RunConf) -> dict[str, Any]:
    """The run as plain JSON types, enums by their value."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return {key: plain(value) for key, value in dataclasses.asdict(run).items()}


def digest(run: RunConf) -> str:
    """Sixteen hex digits that are equal on two ranks exactly if their runs are."""
    text = json.dumps(as_dict(run), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _split_texts(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Free texts apart from overrides: `prompt=Hi, you = me {x}` is no expression of Hydra's grammar."""
    texts: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in _TEXT_KEYS:
            texts[key] = value
        elif not equals:
            raise ConfigError(f"{word!r} is neither a job nor key=value. Jobs: {', '.join(JOBS)}. See gptoss --help.")
        elif word.startswith(("+", "~")) or key.startswith("plan.rules"):
            raise ConfigError(
                f"{word}: keys are neither added nor removed here. Rules of your own go into a YAML file, "
                "DIR/plan/NAME.yaml, taken with --conf DIR plan=NAME; conf/plan/custom.yaml is an example."
            )
        else:
            overrides.append(word)
    return texts, overrides


def _to_objects(overrides: list[str], extra: Path | None) -> RunConf:
    if extra and not extra.is_dir():
        raise ConfigError(f"--conf {extra}: no such folder. It holds plan/NAME.yaml, model/NAME.yaml and so on.")
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConf)
    for name, node in JOBS.items():
        store.store(group="job", name=f"{name}_schema", node=node)
    for word in overrides:
        _check_choice(word, extra)
    search = [f"hydra.searchpath=[file://{extra.resolve()}]"] if extra else []
    try:
        OverridesParser.create().parse_overrides(overrides)
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            composed = compose("config", overrides=search + overrides)
        run = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, overrides)) from None
    if not isinstance(run, RunConf):
        raise TypeError(f"composed {type(run).__name__} instead of RunConf")
    return run


def _check_choice(word: str, extra: Path | None) -> None:
    key, _, value = word.partition("=")
    if key not in GROUPS or value == "null":
        return
    known = choices(key, extra)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {key}={near[0]}?" if near else ""
        raise ConfigError(f"{key}={value}: no such choice. {key} is one of {', '.join(known)}.{hint}")


def _set_text(run: RunConf, key: str, value: str) -> None:
    node: Any = run
    *path, last = key.split(".")
    for name in path:
        node = getattr(node, name)
    if not hasattr(node, last):
        raise ConfigError(f"{key}: the job {run.job.name} has no such key. It has: {_keys(node)}.")
    setattr(node, last, value)


def _keys(node: Any) -> str:
    return ", ".join(one.name for one in dataclasses.fields(node))


def _known_keys() -> list[str]:
    keys = [one.name for one in dataclasses.fields(RunConf)]
    for one in dataclasses.fields(RunConf):
        if one.default_factory is not dataclasses.MISSING:
            keys += [f"{one.name}.{inner.name}" for inner in dataclasses.fields(one.default_factory())]
    return keys + [f"job.{one.name}" for node in JOBS.values() for one in dataclasses.fields(node)]


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's or OmegaConf's complaint as one line that names the word it is about."""
    details = f"{error}\n{error.__cause__ or ''}"
    first = " ".join(str(error.__cause__ or error).split("\n")[0].split())
    for word in sorted(overrides, key=lambda one: -len(one.partition("=")[0])):
        key = word.partition("=")[0]
        if key not in details:
            continue
        if key not in _known_keys() and key not in GROUPS:
            near = difflib.get_close_matches(key, _known_keys() + list(GROUPS), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else " See gptoss --help."
            return f"{word}: there is no key {key}.{hint}"
        return f"{word}: {first}"
    return first
