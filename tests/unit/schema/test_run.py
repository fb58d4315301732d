from __future__ import annotations

import dataclasses
import re
from enum import Enum

import pytest
import yaml
from omegaconf import OmegaConf

from gptoss_dist.config import choices, conf_folder
from gptoss_dist.schema.job.base import JobConf
from gptoss_dist.schema.node import Node
from gptoss_dist.schema.run import JOBS, RunConf

_SECRET = re.compile(r"secret|passw|credential|(^|_)(api|auth|key|token|bearer|login|user)($|_)")


def every_field(node: type) -> list[tuple[str, dataclasses.Field]]:
    """Each field below a class of the schema, by its dotted name; every job's."""
    found = []
    for one in dataclasses.fields(node):
        kinds = JOBS.values() if one.name == "job" else [one.default_factory]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Node)]
        found += [(f"{one.name}.{name}", inner) for kind in nested for name, inner in every_field(kind)]
        found += [] if nested else [(one.name, one)]
    return found


def test_no_field_looks_like_a_secret():
    names = [name for name, _ in every_field(RunConf)]
    assert len(names) > 40
    assert [name for name in names if any(_SECRET.search(part) for part in name.split("."))] == []
    for like in ("hf_token", "api_key", "password", "auth", "secret_file"):
        assert _SECRET.search(like)


def test_every_class_is_a_structured_config_of_one_default():
    OmegaConf.structured(RunConf)
    for node in JOBS.values():
        assert issubclass(node, JobConf)
        OmegaConf.structured(node)


@pytest.mark.parametrize("job", JOBS)
def test_the_file_of_a_job_lists_every_key_with_its_default(job):
    written = yaml.safe_load((conf_folder() / "job" / f"{job}.yaml").read_text())
    written.pop("defaults")
    assert written.pop("name") == job
    defaults = {}
    for one in dataclasses.fields(JOBS[job]):
        value = one.default_factory() if one.default is dataclasses.MISSING else one.default
        defaults[one.name] = value.value if isinstance(value, Enum) else value
    del defaults["name"]
    assert written == defaults


def test_keys_lie_in_the_module_named_like_their_folder_or_file():
    for one in dataclasses.fields(RunConf):
        if one.name not in ("prompt", "backend", "job"):
            assert one.default_factory.__module__ == f"gptoss_dist.schema.{one.name}"
    for job, kind in JOBS.items():
        assert kind.__module__ == f"gptoss_dist.schema.job.{job}"


@pytest.mark.parametrize("group", ["model", "plan", "kernels", "engine", "cluster"])
def test_a_choice_is_named_like_its_file(group):
    for name in choices(group):
        assert yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text())["name"] == name


def test_default_choices_are_the_defaults_of_the_schema():
    for group, name in (("generation", "default"), ("cluster", "local"), ("engine", "default")):
        written = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text())
        node = dataclasses.asdict(getattr(RunConf(), group))
        for key, value in written.items():
            if key != "name":
                known = node[key]
                assert (known.value if isinstance(known, Enum) else known) == value, f"{group}.{key}"


def test_defaults_are_not_shared_between_runs():
    one, other = RunConf(), RunConf()
    one.generation.stop.append("x")
    one.plan.rules["a"] = "colwise"
    assert other.generation.stop == []
    assert other.plan.rules == {}
