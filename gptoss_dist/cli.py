"""One `main` behind every door: torchrun, accelerate, srun, `python -m gptoss_dist`, `gptoss`.

    JOB key=value … [--name value] [--conf DIR] [--json] [--help] [--version]

The first word is short for `job=JOB`, and `--name value` for `job.name=value`; for `name=value` where no key of the
job but one of the run, or a group, has that name: `--prompt`, `--model`, `--plan`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_dist import __version__
from gptoss_dist import help as help_texts
from gptoss_dist.collector import uncollected
from gptoss_dist.complaints import shown
from gptoss_dist.config import compose_run, export_staged
from gptoss_dist.devices import default_ranks, visible_gpus
from gptoss_dist.errors import ConfigError, GptOssDistError, WorldSizeError
from gptoss_dist.files import user_path
from gptoss_dist.jobs.table import Result, loads_model, module_of, needs_ranks, run_in_one_process
from gptoss_dist.launcher.command import shell_text, torchrun_command
from gptoss_dist.launcher.env import RankEnv, export_rank_env, read_rank_env
from gptoss_dist.launcher.spawn import spawn_ranks
from gptoss_dist.log import set_up_logging
from gptoss_dist.output import set_up_output, write, write_json, write_line
from gptoss_dist.plan.degrees import resolve_degrees
from gptoss_dist.schema.cluster import Device
from gptoss_dist.schema.run import GROUPS, JOBS, RunConf

if TYPE_CHECKING:
    from gptoss_dist.runtime.watch import Watch

_POSITIONAL = {"prefetch": "what"}
_KEYS_OF_THE_RUN = {*GROUPS, *(one.name for one in dataclasses.fields(RunConf))} - {"job"}
_HYDRAS_FLAGS = (
    *("--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"),
    *("--hydra-help", "--info", "-i", "--multirun", "-m", "--package", "-p", "--resolve", "--run", "-r"),
)
"""What those who know Hydra type; no job has a key of such a name."""


@dataclass(frozen=True)
class Words:
    """What was typed, taken apart; `overrides` are Hydra's."""

    overrides: list[str]
    conf: Path | None = None
    as_json: bool = False
    help_for: str | None = None
    wants_version: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run what `argv` (default: the command line) says; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["help"], ["--help"], ["-h"]):  # whatever it asks about follows
        argv = [*argv[1:], "--help"]
    set_up_output()
    try:
        env = read_rank_env(os.environ)
        if env is not None and env.world_size > 1:
            return _as_rank(argv, env)
        return _as_script(argv[1:]) if argv[:1] == ["slurm"] else _alone(argv, env)
    except GptOssDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def take_apart(argv: Sequence[str]) -> Words:
    """The job's word, flags and overrides. Raises ConfigError for a flag without a value, and for two jobs."""
    overrides: list[str] = []
    rest = list(argv)
    job = ""
    conf: Path | None = None
    as_json = wants_help = wants_version = False
    while rest:
        word = rest.pop(0)
        if word in ("--help", "-h"):
            wants_help = True
        elif word == "--version":
            wants_version = True
        elif word == "--json":
            as_json = True
        elif word.partition("=")[0] in _HYDRAS_FLAGS:
            raise ConfigError(
                f"{shown(word)}: Hydra's own flags do nothing here. More choices of your own: --conf DIR. Several runs "
                "from one command: python launch/sweep.py --multirun … in a checkout."
            )
        elif word.startswith("--"):
            name, value = _flag(word, rest, _switches(job))
            if name == "conf":
                conf = user_path(value, "--conf")
            else:
                overrides.append(f"{_key(name.replace('-', '_'), job)}={value}")
        elif (named := word.removeprefix("job=")) in JOBS:
            if job not in ("", named):
                raise ConfigError(f"{job} and {named} are two jobs, and one run does one.")
            job = named
        elif "=" not in word and job in _POSITIONAL:
            overrides.append(f"job.{_POSITIONAL[job]}={word}")
        else:
            overrides.append(word)
    topic = job or ("generate" if overrides else "")
    return Words([f"job={job}"] * bool(job) + overrides, conf, as_json, topic if wants_help else None, wants_version)


def _switches(job: str) -> set[str]:
    """The keys of a job that are true or false: their flags need no value."""
    return {one.name for one in dataclasses.fields(JOBS[job]) if one.type == "bool"} if job else set()


def _key(name: str, job: str) -> str:
    """The key that a flag stands for."""
    is_the_jobs = job != "" and name in {one.name for one in dataclasses.fields(JOBS[job])}
    return name if name in _KEYS_OF_THE_RUN and not is_the_jobs else f"job.{name}"


def _flag(word: str, rest: list[str], switches: set[str]) -> tuple[str, str]:
    """Name and value of `--name=value`, or of `--name` and the next of `rest`, which is taken off."""
    name, equals, value = word[2:].partition("=")
    if name in ("json", "help", "version"):
        raise ConfigError(f"{word}: --{name} takes no value.")
    if not equals and name.replace("-", "_") in switches and rest[:1] not in (["true"], ["false"]):
        return name, "true"
    if not equals and rest and not rest[0].startswith("--"):
        return name, rest.pop(0)
    if not equals or (name == "conf" and not value):
        raise ConfigError(f"--{name} needs a value: --{name} VALUE or --{name}=VALUE.")
    return name, value


def _alone(argv: list[str], env: RankEnv | None) -> int:
    """No other ranks: show help, do a small job, start the ranks, or be the only one."""
    words = take_apart(argv)
    if (text := _text_instead(argv, words)) is not None:
        write_line(text)
        return 0
    run = compose_run(words.overrides, words.conf)
    export_staged(run, os.environ)
    set_up_logging(run.cluster.log_level)
    if not needs_ranks(run):
        _show(run_in_one_process(run, words.as_json), words.as_json)
        return 0
    ranks = _ranks_wanted(run, env, argv)
    if ranks > 1:
        return spawn_ranks(ranks, argv)
    from gptoss_dist.runtime.watch import guard

    with guard(None) as watch:
        _on_ranks(run, None, watch, words.as_json)
    return 0


def _text_instead(argv: list[str], words: Words) -> str | None:
    """What is printed in the stead of a run: the version, or help; None: there is a run."""
    if words.wants_version:
        return f"gptoss-dist {__version__}"
    return help_texts.text(words.help_for or "") if not argv or words.help_for is not None else None


def _as_script(argv: list[str]) -> int:
    """`gptoss slurm JOB …`: the rest of the words as a batch script."""
    words = take_apart(argv)
    if not argv or words.help_for is not None:
        write_line(help_texts.for_slurm())
        return 0
    from gptoss_dist.jobs.slurm import run_slurm

    run = compose_run(words.overrides, words.conf)
    set_up_logging(run.cluster.log_level)
    _show(run_slurm(run, [word for word in argv if word != "--json"]), words.as_json)
    return 0


def _as_rank(argv: list[str], env: RankEnv) -> int:
    """One of several ranks, whoever started them."""
    export_rank_env(env, os.environ)
    from gptoss_dist.runtime.watch import guard

    with guard(env) as watch:
        words = take_apart(argv)
        if (text := _text_instead(argv, words)) is not None:
            if env.rank == 0:
                write_line(text)
            return 0
        run = compose_run(words.overrides, words.conf)
        export_staged(run, os.environ)
        set_up_logging(run.cluster.log_level, env.rank)
        if needs_ranks(run):
            _ranks_wanted(run, env, argv)
            _on_ranks(run, env, watch, words.as_json)
        elif env.rank == 0:
            _show(run_in_one_process(run, words.as_json), words.as_json)
    return 0


def _ranks_wanted(run: RunConf, env: RankEnv | None, argv: Sequence[str]) -> int:
    """World size of the plan; WorldSizeError with the command to use if a launcher started another number."""
    plan, gpus = run.plan, 0 if run.cluster.device is Device.cpu else visible_gpus()
    fixed = (plan.dp or 1) * (plan.tp or 1)
    is_open = plan.dp is None or plan.tp is None
    devices = default_ranks(gpus, plan.tp is None and not plan.auto)
    if not gpus:
        devices = max(devices, fixed)
    try:
        return resolve_degrees(plan, env.world_size if env else None, devices).world_size
    except WorldSizeError as error:
        started = env.world_size if env else devices
        ranks = max(started // fixed, 1) * fixed if is_open else fixed
        raise WorldSizeError(f"{error} The command: {shell_text(torchrun_command(ranks, argv))}") from None


def _on_ranks(run: RunConf, env: RankEnv | None, watch: Watch, as_json: bool) -> None:
    job = module_of(run)
    if not loads_model(run):
        job.run_without_model(run, env, watch, as_json)
        return
    with uncollected():  # transformers
        from gptoss_dist.session import join_ranks, load_session

    is_first = env is None or env.rank == 0
    if is_first:
        job.check(run)
    group = join_ranks(run, env, watch.store)
    if hasattr(job, "before_loading"):
        content = group.broadcast_object(job.before_loading(run) if is_first else None)
        if content is not None:
            if is_first:
                write_json(content) if as_json else job.show(content)
            group.stop()
            return
    check_model = getattr(job, "check_model", None) if is_first else None
    session = load_session(run, group, check_model)
    result = job.run(session, watch, as_json)
    if result is not None and as_json:
        write_json(result)
    session.close()


def _show(result: Result, as_json: bool) -> None:
    content, text = result
    if as_json:
        write_json(content)
    else:
        lines = text if text is not None else "\n".join(f"{key}: {value}" for key, value in content.items())
        write(lines + "\n" if lines else "")
