from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gptoss_dist.cli import main
from gptoss_dist.config import compose_run
from gptoss_dist.errors import CheckpointError, ConfigError, PlanError
from gptoss_dist.jobs.plan import describe, run_plan
from gptoss_dist.shapes import SIZES


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def plan(*words: str, conf: Path | None = None) -> dict:
    return run_plan(compose_run(["job=plan", *words], conf))


def folder_of(tmp_path: Path, size: str, **config: object) -> Path:
    content = {**SIZES[size].hub_config(), **config}
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_four_ranks_of_the_large_model():
    result = plan("model=gpt_oss_120b", "plan=tp", "plan.tp=4")
    assert (result["model"], result["plan"], result["dp"], result["tp"]) == ("gpt_oss_120b", "tp", 1, 4)
    assert [one["rank"] for one in result["ranks"]] == [0, 1, 2, 3]
    assert [one["weights_gb"] for one in result["ranks"]] == pytest.approx([16.69, 16.69, 16.69, 15.34], abs=0.01)
    tokens, full, sliding = 8192, 18 * 2 * 2 * 64 * 2, 18 * 128 * 2 * 2 * 64 * 2
    assert result["ranks"][0]["cache_gb"] == pytest.approx((tokens * full + sliding) / 1e9, abs=5e-4)
    assert result["rules"]["model.layers.*.mlp.experts"] == "gptoss_expert_slices"
    assert json.loads(json.dumps(result)) == result


def test_replicas_are_told_apart():
    result = plan("model=gpt_oss_20b", "plan=dp_tp", "plan.tp=2")
    assert [(one["rank"], one["replica"]) for one in result["ranks"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_ranks_and_context_are_keys_of_the_job():
    result = plan("model=gpt_oss_120b", "plan=ep", "job.ranks=8", "job.context=1024")
    assert (result["tp"], len(result["ranks"]), result["context"]) == (8, 8, 1024)
    longer = plan("model=gpt_oss_120b", "plan=ep", "job.ranks=8", "job.context=2048")
    assert longer["ranks"][0]["cache_gb"] > result["ranks"][0]["cache_gb"]


@pytest.mark.parametrize(("ranks", "dp", "tp", "name"), [(1, 1, 1, "single"), (4, 1, 4, "tp"), (16, 2, 8, "dp_tp")])
def test_auto_is_planned_as_it_would_be_chosen(ranks, dp, tp, name):
    result = plan("model=gpt_oss_120b", "plan=auto", f"job.ranks={ranks}")
    assert (result["plan"], result["dp"], result["tp"]) == (name, dp, tp)
    assert result["reason"]
    assert f"plan=auto chose it: {result['reason']}" in describe(result)


@pytest.mark.parametrize("name", ["single", "tp", "ep", "tp_ep", "dp_tp", "auto", "device_map", "custom"])
def test_every_plan_can_be_described_with_nothing_else_said(name):
    result = plan("model=gpt_oss_120b", f"plan={name}")
    text = describe(result)
    assert len(result["ranks"]) == result["dp"] * result["tp"]
    for rule in result["rules"]:
        assert rule in text
    assert text.splitlines()[-1].split()[0] == str(len(result["ranks"]) - 1)


def test_dequantised_experts_are_planned_as_bfloat16():
    packed, dense = plan("model=gpt_oss_20b"), plan("model=gpt_oss_20b", "model.dequantize=true")
    assert dense["ranks"][0]["weights_gb"] == pytest.approx(SIZES["20b"].checkpoint_bytes(dense=True) / 1e9, abs=1e-3)
    assert dense["ranks"][0]["weights_gb"] > 2.5 * packed["ranks"][0]["weights_gb"]


def test_the_shape_comes_from_the_folder(tmp_path):
    folder = folder_of(tmp_path, "20b")
    here = plan(f"model.path={folder}")
    assert here["ranks"] == plan("model=gpt_oss_20b")["ranks"]
    assert here["dtype"] == "bfloat16"  # not the toy's float32, although this machine has no GPU
    dense = plan(f"model.path={folder_of(tmp_path, '20b', quantization_config=None)}")
    assert dense["ranks"] == plan("model=gpt_oss_20b", "model.dequantize=true")["ranks"]


def test_a_folder_that_is_not_there_is_no_reason_to_plan_for_another_model(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path=.*nowhere: no such folder"):
        plan("model=gpt_oss_120b", f"model.path={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"model\.path=someone/else: no such folder"):
        plan("model=gpt_oss_120b", "model.path=someone/else")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "llama"}'])
def test_a_wrong_config_names_its_file(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path / "config.json")):
        plan(f"model.path={tmp_path}")


def test_the_toy_is_the_toy_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    folder_of(tmp_path / "tiny", "20b")
    assert plan("model=tiny")["ranks"][0]["weights_gb"] < 0.2


def test_what_the_model_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="8 key-value heads do not divide over 16 ranks"):
        plan("model=gpt_oss_120b", "plan=tp", "plan.tp=16")
    with pytest.raises(ConfigError, match="128 experts do not divide over 3 ranks"):
        plan("model=gpt_oss_120b", "plan=ep", "plan.tp=3", "plan.vocabulary=whole")


def test_a_rule_that_matches_nothing_is_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "plan").mkdir()
    rules = "rules:\n  model.layers.*.self_atn: gptoss_local\n  lm_head: colwise_gather_output\n"
    (tmp_path / "plan" / "mine.yaml").write_text(f"name: mine\ntp: 2\n{rules}")
    with pytest.raises(PlanError, match=r"1 of the plan's rules match nothing .*: model\.layers\.\*\.self_atn\."):
        plan("plan=mine", conf=tmp_path)


def test_the_program_prints_a_table_or_one_json_object(capsys):
    words = ["plan", "model=gpt_oss_120b", "plan=tp", "plan.tp=2"]
    assert main(words) == 0
    table = capsys.readouterr()
    assert table.err == ""
    assert table.out.splitlines()[0] == "gpt_oss_120b by plan=tp: dp=1 × tp=2, bfloat16"
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == plan(*words[1:])


# ── on a kind of GPU ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_fits_on_a_gpu_and_how_fast_it_could_be():
    result = plan("model=gpt_oss_120b", "plan=tp", "plan.tp=2", "job.gpu=h200", "job.streams=[1]", "job.context=1024")
    assert (result["gpu"], result["fits"]) == ("H200", True)
    free = ((139 << 30) - (2 << 30) - 32.65e9) * 0.9
    assert result["cache_free_gb"] == pytest.approx(free / 1e9, abs=0.01)
    assert result["longest_context"] == 131072
    one = result["ranks"][0]
    assert one["cache_bytes_per_token"] == 18 * 2 * 4 * 64 * 2
    sliding = (
        18 * 2 * 4 * 64 * 2
    )  # a token's bytes there: 128 of the window, and a 16th of all for windows that are kept
    assert result["requests_at_once"] == int(
        free // (1024 * (one["cache_bytes_per_token"] + sliding // 16) + 128 * sliding)
    )
    assert result["decode_limits"][0]["tokens_per_s"] == pytest.approx(1000, rel=0.02)
    assert result["all_reduces"] == {"a_step": 72, "bytes_a_token": 5760}
    text = describe(result)
    assert "longest context 131072" in text
    assert "1 stream 9" in text or "1 stream 10" in text


def test_what_does_not_fit_is_said():
    result = plan("model=gpt_oss_120b", "plan=single", "model.dequantize=true", "job.gpu=H100")
    assert not result["fits"]
    assert result["requests_at_once"] == 0
    assert "no request of 8192 tokens fits (longest: 0)" in describe(result)


def test_plans_for_as_many_ranks_are_ranked_and_those_that_fit_come_first():
    result = plan("model=gpt_oss_120b", "plan=auto", "job.ranks=4", "job.gpu=H100", "job.context=131072")
    ranking = result["ranking"]
    fits = [one["fits"] for one in ranking]
    assert fits == sorted(fits, reverse=True)
    speeds = [one["tokens_per_s"][0] for one in ranking if one["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    assert ranking[0]["words"] == "plan=tp plan.dp=1 plan.tp=4"
    assert all(one["words"] in describe(result) for one in ranking)
    for one in ranking:  # each is what it says, typed as it stands
        again = plan("model=gpt_oss_120b", *one["words"].split(), "job.gpu=H100", "job.context=131072")
        assert again["dp"] * again["tp"] == 4
        assert again["decode_limits"][0]["tokens_per_s"] == pytest.approx(one["tokens_per_s"][0], abs=0.1)
        assert again["requests_at_once"] == one["requests_at_once"]


def test_a_gpu_that_nobody_measured_is_refused():
    with pytest.raises(ConfigError, match=r"job\.gpu=B300: its ceilings are not known here\. Known: H200, H100\."):
        plan("model=gpt_oss_120b", "plan=tp", "job.gpu=B300")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("plan=tp", "plan.tp=4"),
            ["0–15 of 64 heads", "0–22 of 90", "69–89 of 90", "0–50271 of 201088 rows"],
        ),
        (("plan=ep", "plan.tp=2"), ["whole (64 heads)", "64–127 of 128 experts", "whole (201088 rows)"]),
        (("plan=dp_tp", "plan.dp=2", "plan.tp=2"), ["rank 3, replica 1", "32–63 of 64 heads"]),
    ],
)
def test_the_picture_shows_what_each_rank_holds(tmp_path, words, said):
    file = tmp_path / "plan.svg"
    result = plan("model=gpt_oss_120b", *words, f"job.plot={file}")
    root = ElementTree.fromstring(file.read_text())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for one in said:
        assert any(one in (text or "") for text in texts), (one, texts)
    assert sum(text is not None and text.endswith(" GB") for text in texts) == len(result["ranks"])


def test_a_picture_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        plan("model=gpt_oss_120b", "plan=tp", f"job.plot={tmp_path}")
