"""From words on a command line to one checked, frozen `RunConf`.

Hydra's compose API reads `conf/` (no files written, no handlers, the same in every rank); OmegaConf turns the result
into objects once; `check` looks at what keys mean together; then nothing can be set any more. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping, MutableMapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from gptoss_dist.checks import check
from gptoss_dist.complaints import complaint, known_keys, no_such_job, no_such_key, shown
from gptoss_dist.devices import visible_gpus
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.job.bench import BenchConf
from gptoss_dist.schema.job.chat import ChatConf
from gptoss_dist.schema.job.generate import GenerateConf
from gptoss_dist.schema.job.plan import PlanJobConf
from gptoss_dist.schema.job.serve import ServeConf
from gptoss_dist.schema.run import GROUPS, JOBS, RunConf
from gptoss_dist.staged import open_staged

_TARGET_KEYS = ("job.target", "job.target_model")
_FILE_KEYS = ("job.file", "job.messages", "job.tools", "job.out", "job.plot", "job.output", "job.functions")
_NAME_KEYS = ("cluster.staged", "engine.script", "job.model_name", *_FILE_KEYS, *_TARGET_KEYS, "model.revision")
"""Texts that name something outside; `null` takes them back."""
_TEXT_KEYS = ("prompt", "job.system", "job.developer", "model.path", *_NAME_KEYS)
"""Texts taken as they are: commas, braces and digits mean nothing in them."""
_TEXT_OR_LIST = "job.input"
"""A text, taken as it is, unless it begins as a list or with a quote."""
_JOBS_OF_A_MODEL = (GenerateConf, ChatConf, ServeConf, BatchConf, BenchConf, PlanJobConf)


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

    `extra` is a folder of more choices, laid out like `conf/`. Where neither `model=`, `model.path=` nor `preset=` says
    which, the model is `tiny` on a machine that shows no GPU. Raises ConfigError with one line that names the key, what
    was wrong and what would be right.
    """
    texts, overrides = _split_texts(words)
    named = "model.path" in texts or any(word.startswith(("model=", "preset=")) for word in overrides)
    if not named and not visible_gpus():
        overrides.insert(0, "model=tiny")
    run = _to_objects(overrides, extra)
    for key, value in texts.items():
        _set_text(run, key, value)
    check(run)
    _take_staged_weights(run)
    run.freeze()
    return run


def export_staged(run: RunConf, environ: MutableMapping[str, str]) -> None:
    """With `cluster.staged`, set the variables by which others' packages find that folder and no network."""
    if run.cluster.staged is not None:
        environ.update(open_staged(user_path(run.cluster.staged, "cluster.staged")).environment())


@functools.cache  # a sixth of what composing takes, and Hydra keeps it as long as the process lives
def register_schema() -> None:
    """Give Hydra the schema that the files of `conf/` refer to."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConf)
    for name, node in JOBS.items():
        store.store(group="job", name=f"{name}_schema", node=node)


def unquoted(word: str) -> str:
    """A word of Hydra's grammar as `compose_run` takes it: free texts have no quotes there."""
    key = word.partition("=")[0]
    value = OverridesParser.create().parse_override(word).value() if key in _TEXT_KEYS else None
    return f"{key}={value}" if isinstance(value, str) else word


def as_dict(run: RunConf) -> dict[str, Any]:
    """The run as plain JSON types, enums by their value."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if dataclasses.is_dataclass(value):
            return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    return {one.name: plain(getattr(run, one.name)) for one in dataclasses.fields(run)}


def digest(run: RunConf) -> str:
    """Sixteen hex digits that are equal on two ranks exactly if their runs are."""
    text = json.dumps(as_dict(run), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _take_staged_weights(run: RunConf) -> None:
    """With `cluster.staged`, a model by its name on the hub is the one in that folder."""
    path, staged = run.model.path, run.cluster.staged
    needed = isinstance(run.job, _JOBS_OF_A_MODEL) and getattr(run.job, "target", None) is None
    if staged is not None and needed and run.engine.script is None and path != "tiny" and not Path(path).is_dir():
        run.model.path = str(open_staged(user_path(staged, "cluster.staged")).weights(path, run.model.revision))


def _split_texts(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Free texts apart from overrides: `prompt=Hi, you = me {x}` is no expression of Hydra's grammar."""
    texts: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and (key in _TEXT_KEYS or (key == _TEXT_OR_LIST and not value.startswith(("[", "'", '"')))):
            texts[key] = value
        elif not equals and not word.startswith(("+", "~")):
            raise ConfigError(no_such_job(word))
        elif key.partition(".")[0].partition("/")[0] == "hydra":
            raise ConfigError(f"{shown(word)}: Hydra's own keys do nothing here. More choices of your own: --conf DIR.")
        elif word.startswith(("+", "~")) or key.startswith("plan.rules"):
            raise ConfigError(
                f"{shown(word)}: keys are neither added nor removed here. Rules of your own go into a YAML file, "
                "DIR/plan/NAME.yaml, taken with --conf DIR plan=NAME; conf/plan/custom.yaml is an example."
            )
        else:
            texts.pop(key, None)  # a list after a text: the last word of a key counts
            overrides.append(word)
    return texts, overrides


def _to_objects(overrides: list[str], extra: Path | None) -> RunConf:
    if extra:
        _check_folder(extra)
    register_schema()
    job = next((word.removeprefix("job=") for word in reversed(overrides) if word.startswith("job=")), "generate")
    for word in overrides:
        _check_choice(word, extra)
        _check_value(word, job)
    search = [f"hydra.searchpath=[{_quoted(f'file://{extra.resolve()}')}]"] if extra else []
    try:
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            composed = compose("config", overrides=search + overrides)
        run = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(complaint(error, overrides, job)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{extra or conf_folder()}: a YAML file that was asked for is not UTF-8: {error}.") from None
    if not isinstance(run, RunConf):
        raise TypeError(f"composed {type(run).__name__} instead of RunConf")
    return run


def _check_folder(extra: Path) -> None:
    """Hydra would take the choice of `conf/` without a word where both folders have one of a name."""
    if not extra.is_dir():
        raise ConfigError(f"--conf {extra}: no such folder. It holds plan/NAME.yaml, model/NAME.yaml and so on.")
    for group in GROUPS:
        for name in choices(group):
            ours, theirs = (folder / group / f"{name}.yaml" for folder in (conf_folder(), extra))
            if theirs.exists() and theirs.read_bytes() != ours.read_bytes():
                raise ConfigError(f"{theirs}: {group}={name} is a choice of {conf_folder()} already. Rename it.")


def _quoted(text: str) -> str:
    """A quoted value of Hydra's grammar, where a backslash matters only before a quote or at the end."""
    return "'" + re.sub(r"(\\*)('|$)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), text) + "'"


def _check_choice(word: str, extra: Path | None) -> None:
    key, _, value = word.partition("=")
    if key not in GROUPS:
        return
    known = choices(key, extra)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {key}={near[0]}?" if near else ""
        if key == "model" and "/" in value:
            hint = f" A folder, or a name on the hub: model.path={value}."
        raise ConfigError(f"{shown(word)}: no such choice. {key} is one of {', '.join(known)}.{hint}")


def _check_value(word: str, job: str) -> None:
    key = word.partition("=")[0]
    if key not in known_keys() and key not in GROUPS:
        raise ConfigError(no_such_key(word, job))
    quoting = f"A list is {key}=[a,b]; a text with signs in it is quoted twice, {key}=\"'a, b'\"."
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        raise ConfigError(f"{shown(word)}: the value cannot be read. {quoting}") from None
    if parsed.is_sweep_override():
        raise ConfigError(f"{shown(word)}: one value is needed, and these are several. {quoting}")


def _set_text(run: RunConf, key: str, value: str) -> None:
    node: Any = run
    *path, last = key.split(".")
    for name in path:
        node = getattr(node, name)
    if not hasattr(node, last):
        raise ConfigError(f"{key}: the job {run.job.name} has no such key. It has: {_keys(node)}.")
    if key == "model.path" and value.startswith("~"):  # a shell leaves it as it is behind an equals sign
        value = str(user_path(value, key))
    setattr(node, last, None if value == "null" and key in (*_NAME_KEYS, _TEXT_OR_LIST) else value)


def _keys(node: Any) -> str:
    return ", ".join(one.name for one in dataclasses.fields(node))
