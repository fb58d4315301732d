from __future__ import annotations

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError
from gptoss_dist.jobs.serve import check
from gptoss_dist.jobs.table import needs_ranks
from gptoss_dist.server.served_model import names_of


def test_a_server_listens_on_this_machine_only_unless_told():
    run = compose_run(["job=serve", "model=gpt_oss_20b"])
    assert (run.job.host, run.job.port) == ("127.0.0.1", 8000)
    assert needs_ranks(run)
    assert not needs_ranks(compose_run(["job=serve", "engine=scripted", "engine.script=a b.yaml"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["job.port=65536"], "job.port=65536"),
        (["job.port=-1"], "job.port=-1"),
        (["job.max_waiting=0"], "job.max_waiting=0"),
        (["job.max_body_mb=0"], "job.max_body_mb=0"),
        (["job.max_behind=0"], "job.max_behind=0"),
        (["job.drain_s=-1"], "job.drain_s=-1"),
        (["job.host=' '"], "job.host"),
        (["job.cors_origins=[https://a.b/c]"], "job.cors_origins: 'https://a.b/c'"),
        (["job.cors_origins=[https://a.b/]"], "job.cors_origins: 'https://a.b/'"),
        (["job.cors_origins=['*',a.b]"], "job.cors_origins: 'a.b'"),
        (["job.cors_origins=[https://A.b]"], "job.cors_origins: 'https://A.b'"),
    ],
)
def test_what_cannot_be_is_named(words, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        compose_run(["job=serve", *words])


@pytest.mark.parametrize("origin", ["*", "http://localhost:3000", "https://my.site", "http://[::1]:80", "null"])
def test_what_browsers_send_is_an_origin(origin):
    assert compose_run(["job=serve", f"job.cors_origins=['{origin}']"]).job.cors_origins == (origin,)


def test_the_scripted_engine_needs_a_script():
    with pytest.raises(ConfigError, match="engine=scripted needs a script"):
        check(compose_run(["job=serve", "engine=scripted"]))


def test_a_script_is_for_serving():
    with pytest.raises(ConfigError, match="a script is served"):
        compose_run(["job=generate", "engine=scripted", "engine.script=x", "prompt=a"])


def test_the_model_goes_by_its_name_on_the_hub_its_folder_and_its_choice(tmp_path):
    hub = compose_run(["job=serve", "model=gpt_oss_20b"])
    assert names_of(hub.model, None) == ("openai/gpt-oss-20b", "gpt_oss_20b")
    assert names_of(hub.model, "mine") == ("mine", "openai/gpt-oss-20b", "gpt_oss_20b")
    folder = compose_run(["job=serve", "model=gpt_oss_20b", f"model.path={tmp_path}"])
    assert names_of(folder.model, None) == (tmp_path.name, "gpt_oss_20b")
