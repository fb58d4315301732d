from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_dist.cli import main, take_apart
from gptoss_dist.config import as_dict, choices, compose_run, conf_folder, digest
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.generation import Effort
from gptoss_dist.schema.model import Dtype
from gptoss_dist.schema.plan import AttentionPart, ExpertPart
from gptoss_dist.schema.run import GROUPS, JOBS, RunConf

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_ID")


@pytest.fixture(autouse=True)
def _no_gpu_no_launcher(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in _RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run_program(*argv: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptoss_dist", *argv], capture_output=True, text=True, cwd=cwd, input=stdin, timeout=60
    )


def choice(folder: Path, group: str, name: str, text: str | bytes) -> Path:
    file = folder / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


# ── every choice ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("job", JOBS)
def test_every_choice_composes_for_every_job(job):
    names = {group: choices(group) for group in GROUPS if group not in ("job", "preset")}
    assert all(names.values())
    for turn in range(max(map(len, names.values()))):
        chosen = {group: known[turn % len(known)] for group, known in names.items()}
        run = compose_run([f"job={job}", *(f"{group}={name}" for group, name in chosen.items())])
        assert isinstance(run.job, JOBS[job])
        assert run.job.name == job
        for group in ("model", "plan", "kernels", "cluster"):
            assert getattr(run, group).name == chosen[group]
        assert (run.generation.temperature == 0) == (chosen["generation"] == "greedy")
    for preset in choices("preset"):
        assert compose_run([f"job={job}", f"preset={preset}"]).job.name == job


def test_groups_are_the_folders_of_conf():
    assert sorted(GROUPS) == sorted(path.name for path in conf_folder().iterdir() if path.is_dir())
    assert choices("job") == sorted(JOBS)


def test_the_table_of_contents_names_every_choice_of_every_group():
    contents = {
        line.partition(":")[0].removeprefix("  - ").removeprefix("optional "): line
        for line in (conf_folder() / "config.yaml").read_text().splitlines()
    }
    for group in GROUPS:
        for name in choices(group):
            assert name in contents[group], f"conf/config.yaml does not name {group}={name}"


def test_without_a_gpu_the_model_is_the_toy():
    assert compose_run([]).model.name == "tiny"
    assert compose_run(["model=gpt_oss_20b"]).model.path == "openai/gpt-oss-20b"


def test_a_folder_given_as_model_path_is_not_read_as_the_toy():
    run = compose_run(["model.path=/weights/gpt-oss-120b"])
    assert (run.model.path, run.model.dtype) == ("/weights/gpt-oss-120b", Dtype.auto)


def test_preset_sets_a_whole_run_and_words_beside_it_win():
    guide = compose_run(["preset=guide"])
    assert (guide.model.name, guide.plan.name, guide.kernels.name) == ("gpt_oss_120b", "ep", "hub")
    assert guide.generation.max_new_tokens == 1024
    for words in (["preset=guide", "plan=tp"], ["plan=tp", "preset=guide"]):
        run = compose_run(words)
        assert (run.plan.name, run.plan.attention, run.kernels.name) == ("tp", AttentionPart.tp, "hub")
    assert compose_run(["preset=guide", "generation.max_new_tokens=5"]).generation.max_new_tokens == 5


def test_values_become_typed_objects():
    run = compose_run(
        [
            "plan=tp_ep",
            "plan.tp=4",
            "generation.stop=[a b,'x, y']",
            "generation.reasoning_effort=high",
            "model.revision=0012",
        ]
    )
    assert (run.plan.tp, run.plan.experts, run.plan.attention) == (4, ExpertPart.ep, AttentionPart.tp)
    assert list(run.generation.stop) == ["a b", "x, y"]
    assert run.generation.reasoning_effort is Effort.high
    assert run.model.revision == "0012"  # a commit's digits are no number


@pytest.mark.parametrize("revision", ["1e5", "123e456"])
def test_a_revision_is_never_read_as_a_number(revision):
    assert compose_run([f"model.revision={revision}"]).model.revision == revision


def test_null_takes_a_name_back():
    run = compose_run(["job=synth", "job.out=null", "model.revision=null"])
    assert (run.job.out, run.model.revision) == (None, None)
    assert compose_run(["prompt=null"]).prompt == "null"  # a text, not a name


# ── free texts ───────────────────────────────────────────────────────────────────────────────────────────────────────

_TEXTS = (
    "a, b",
    "{x}",
    "${model.path} ${oc.env:HOME} ${",
    'it\'s "quoted" \\ back',
    "two\nlines\n",
    "[1,2]",
    "a=b=c",
    "null",
    "1e5",
    " leading and trailing ",
    "???",
    "+x ~y",
    "range(1,3)",
    "🙂 ﷽",
    "choice(a,b)",
    "#no comment",
    "key: value",
)


@pytest.mark.parametrize("text", _TEXTS)
def test_free_texts_survive(text):
    run = compose_run([f"prompt={text}", f"job.system={text}", f"job.developer={text}"])
    assert (run.prompt, run.job.system, run.job.developer) == (text, text, text)


def test_a_folder_in_ones_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert compose_run(["model.path=~/weights"]).model.path == "/home/ada/weights"
    assert compose_run(["model.path=a~/b"]).model.path == "a~/b"


def test_names_of_files_survive():
    name = "dir with, comma/{x} ${y} 'z'.json"
    run = compose_run([f"job.file={name}", f"job.tools={name}", f"model.path={name}"])
    assert (run.job.file, run.job.tools, run.model.path) == (name, name, name)
    assert compose_run([f"job.messages={name}"]).job.messages == name
    assert compose_run(["job=synth", f"job.out={name}"]).job.out == name


def test_a_text_of_another_job_is_an_error_that_names_what_the_job_has():
    with pytest.raises(ConfigError, match=r"job\.system: the job plan has no such key\. It has: name, context, ranks"):
        compose_run(["job=plan", "job.system=hi"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tp=2", "Did you mean plan.tp?"),
        ("temperature=0", "Did you mean generation.temperature?"),
        ("file=x", "Did you mean job.file?"),
        ("plan.tpp=2", "Did you mean plan.tp?"),
        ("plan.foo=2", "plan has: dp, tp, attention"),
        ("job.context=4", "job has: file, messages"),
        ("job.mesages=x", "Did you mean job.messages?"),
        ("foo=[", "there is no key foo. See gptoss --help."),
        ("model=openai/gpt-oss-20b", "A folder, or a name on the hub: model.path=openai/gpt-oss-20b."),
        ("hello", 'A prompt: prompt="…".'),
    ],
)
def test_what_was_meant_is_said(word, meant):
    with pytest.raises(ConfigError, match=re.escape(meant)):
        compose_run([word])


# ── what is wrong, in one line ───────────────────────────────────────────────────────────────────────────────────────

_WRONG = {
    # typos
    "modle=tiny": ("modle", "model"),
    "model=tinny": ("model=tinny", "tiny"),
    "model.pth=x": ("model.pth", "model.path"),
    "plan=pt": ("plan=pt", "tp"),
    "plan.pt=4": ("plan.pt",),
    "plan=null": ("plan=null", "custom"),
    "preset=null": ("preset=null", "guide"),
    "job=null": ("job=null",),
    "preset=nope": ("preset=nope", "guide"),
    "job=tiny_schema": ("job=tiny_schema", "prefetch"),
    "cluster=here": ("cluster=here", "local"),
    "job.size=20b": ("job.size=20b",),
    "model/x=1": ("model/x",),
    "model@here=tiny": ("model@here",),
    "=x": ("=x",),
    "hello": ("hello", "generate, chat, serve"),
    "Who are you?": ("Who are you?", "key=value"),
    "+model.x=1": ("+model.x=1", "--conf"),
    "~model": ("~model",),
    "plan.rules.lm_head=colwise": ("plan.rules.lm_head", "--conf"),
    "plan.rules={}": ("plan.rules",),
    "hydra.searchpath=[file:///tmp]": ("hydra.searchpath", "--conf"),
    "hydra/launcher=basic": ("hydra/launcher",),
    # wrong types
    "plan.tp=four": ("plan.tp=four", "Integer"),
    "plan.tp=1.5": ("plan.tp=1.5", "Integer"),
    "plan.tp=": ("plan.tp=", "Integer"),
    "plan.tp=[1,2]": ("plan.tp=[1,2]",),
    "plan.tp=1,2": ("plan.tp=1,2",),
    "plan.tp=range(1,3)": ("plan.tp=range(1,3)",),
    "plan.tp=1\n2": ("plan.tp=1",),
    "plan.tp=${nope}": ("plan.tp=${nope}", "nope"),
    "plan.tp=???": ("plan.tp=???",),
    "plan.attention=ep": ("plan.attention=ep", "whole", "tp"),
    "generation.temperature=hot": ("generation.temperature=hot", "Float"),
    "generation.max_new_tokens=all": ("generation.max_new_tokens=all", "Integer"),
    "generation.stop=END": ("generation.stop=END",),
    "generation.stop=[null]": ("generation.stop=[null]",),
    "generation.stop=[a": ("generation.stop=[a", "quoted"),
    "generation.reasoning_effort=lots": ("lots", "low, medium, high"),
    "model.dtype=int8": ("model.dtype=int8", "bfloat16"),
    "model.dequantize=maybe": ("model.dequantize=maybe", "bool"),
    "kernels.experts=cutlass": ("kernels.experts=cutlass", "triton"),
    "backend=vllm": ("backend=vllm", "transformers"),
    "cluster.device=tpu": ("cluster.device=tpu", "cuda"),
    "job.template=jinja": ("job.template=jinja", "harmony"),
    "job.date=hello, world": ("job.date=hello, world", "quoted"),
    "job.date=it's": ("job.date=it's", "quoted"),
    # impossible combinations
    "plan.tp=0": ("plan.tp=0", "from 1"),
    "plan.dp=null": ("plan.dp=null", "plan.tp=null"),
    "plan=device_map plan.tp=2": ("device_map", "plan.tp"),
    "plan=auto plan.tp=2": ("plan.tp=2", "plan=auto"),
    "plan=auto plan.attention=tp": ("plan.attention=tp", "plan=auto"),
    "generation.temperature=nan": ("generation.temperature=nan",),
    "generation.temperature=1e-40": ("generation.temperature=1e-40", "0.000001"),
    "generation.top_p=0": ("generation.top_p=0", "above 0"),
    "generation.seed=9223372036854775808": ("generation.seed",),
    "generation.stop=['']": ("generation.stop", "empty"),
    "cluster.timeout_s=inf": ("cluster.timeout_s=inf",),
    "cluster.log_level=loud": ("cluster.log_level=loud", "debug"),
    "model.path=": ("model.path",),
    "kernels=hub model.dequantize=true": ("kernels.experts=hub", "model.dequantize=true"),
    "prompt=hi job.file=b": ("prompt", "job.file"),
    "prompt= job.file=b": ("prompt", "job.file"),
    "job.builtin_tools=[shell]": ("shell", "browser"),
    "job.template=raw job.system=hi": ("job.template=raw",),
    "job.name=plan": ("job.name=plan",),
    "job=plan job.context=0": ("job.context=0",),
    "job=synth job.experts=-1": ("job.experts=-1",),
}


@pytest.mark.parametrize("words", _WRONG)
def test_what_is_wrong_is_said_in_one_line_with_status_2(words):
    argv = [words] if words in ("Who are you?", "job.date=hello, world") else words.split(" ")
    with pytest.raises(ConfigError) as caught:
        compose_run(take_apart(argv).overrides)
    message = str(caught.value)
    assert caught.value.exit_status == 2
    assert "\n" not in message
    for part in _WRONG[words]:
        assert part in message


@pytest.mark.parametrize(
    "words", ["modle=tiny", "plan.tp=four", "plan=null", "plan=device_map plan.tp=2", "plan.tp=1\n2"]
)
def test_and_so_does_the_program_itself(words, tmp_path):
    done = run_program("generate", *words.split(" "), "prompt=hi", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # no folder of Hydra's


def test_the_word_that_is_wrong_is_named_among_right_ones():
    words = ["plan=tp", "plan.dp=1", "model=tiny", "generation.top_k=x", "generation.top_p=0.5"]
    with pytest.raises(ConfigError, match=r"^generation\.top_k=x: "):
        compose_run(words)


# ── --conf DIR ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_ones_own_adds_choices(tmp_path):
    rules = "rules:\n  model.layers.*.self_attn.q_proj: colwise\n  lm_head: colwise_gather_output\n"
    choice(tmp_path, "plan", "mine", f"name: mine\ndp: 1\ntp: 2\n{rules}")
    choice(tmp_path, "model", "ours", "name: ours\npath: /weights/ours\n")
    run = compose_run(["plan=mine", "model=ours"], tmp_path)
    assert run.plan.rules == {"model.layers.*.self_attn.q_proj": "colwise", "lm_head": "colwise_gather_output"}
    assert (run.plan.tp, run.model.path) == (2, "/weights/ours")
    assert compose_run(["plan=tp"], tmp_path).plan.name == "tp"
    assert choices("plan", tmp_path) == sorted([*choices("plan"), "mine"])
    with pytest.raises(ConfigError, match=r"plan=mien: no such choice\. .*Did you mean plan=mine\?"):
        compose_run(["plan=mien"], tmp_path)


def test_a_preset_of_ones_own(tmp_path):
    choice(
        tmp_path, "preset", "small", "# @package _global_\ndefaults:\n  - override /plan: tp\ngeneration:\n  top_k: 5\n"
    )
    run = compose_run(["preset=small"], tmp_path)
    assert (run.plan.name, run.generation.top_k) == ("tp", 5)


@pytest.mark.parametrize(
    "name", ["a b,c", "it's", 'd"q"', "${x}", "{a}[b]", "back\\slash", "end\\", "a\\'b", "ü#%20", "k=v"]
)
def test_the_folder_may_have_any_name(tmp_path, name):
    folder = choice(tmp_path / name, "plan", "mine", "name: mine\n")
    assert compose_run(["plan=mine"], folder).plan.name == "mine"


def test_the_folder_may_be_relative(tmp_path, monkeypatch):
    choice(tmp_path / "my conf", "plan", "mine", "name: mine\n")
    monkeypatch.chdir(tmp_path)
    words = take_apart(["plan", "plan=mine", "--conf", "my conf"])
    assert compose_run(words.overrides, words.conf).plan.name == "mine"


def test_a_choice_that_would_hide_behind_ours_is_an_error(tmp_path):
    choice(tmp_path, "plan", "tp", "name: tp\ntp: 7\n")
    with pytest.raises(ConfigError, match=r"plan/tp\.yaml: plan=tp is a choice of .* already\. Rename it"):
        compose_run(["plan=single"], tmp_path)


def test_a_copy_of_our_folder_with_one_more_choice_is_taken(tmp_path):
    for file in conf_folder().glob("*/*.yaml"):
        choice(tmp_path, file.parent.name, file.stem, file.read_bytes())
    choice(tmp_path, "plan", "mine", "name: mine\n")
    assert compose_run(["plan=mine"], tmp_path).plan.name == "mine"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        compose_run([], tmp_path / "nowhere")


_BROKEN = {
    "syntax": ("name: x\ndp: [1\n", ("mine.yaml", "line")),
    "tabs": ("\tname: x\n", ("mine.yaml", "line 1")),
    "unknown key": ("nme: x\n", ("plan=mine", "nme")),
    "wrong type": ("name: x\ndp: two\n", ("plan=mine", "two", "Integer")),
    "list": ("- 1\n- 2\n", ("plan=mine", "list")),
    "text": ("just words\n", ("plan=mine", "just words")),
    "empty": ("", ("plan=mine", "name")),
    "latin-1": (b"name: \xff\n", ("UTF-8",)),
    "rules as a list": ("name: x\nrules: [a]\n", ("plan=mine",)),
    "rules one in another": ("name: x\nrules:\n  lm_head:\n    weight: colwise\n", ("plan.rules", "lm_head")),
    "rule without a style": ("name: x\nrules:\n  lm_head: null\n", ("plan=mine", "lm_head")),
    "interpolation": ("name: x\ntp: ${plan.nope}\n", ("plan=mine", "nope")),
    "environment": ("name: x\ntp: ${oc.env:GPTOSS_NOT_SET}\n", ("plan=mine", "GPTOSS_NOT_SET")),
    "defaults": ("defaults: [nothing]\nname: x\n", ("plan=mine", "nothing")),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_a_broken_file_is_one_line_too(kind, tmp_path, capsys):
    text, parts = _BROKEN[kind]
    choice(tmp_path, "plan", "mine", text)
    assert main(["plan", "plan=mine", "--conf", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7], err.count("\n"), err[-1]) == ("", "error: ", 1, "\n")
    for part in parts:
        assert part in err


def test_a_key_of_no_group_in_a_preset_is_named(tmp_path):
    choice(tmp_path, "preset", "mine", "# @package _global_\nmodle:\n  path: x\n")
    with pytest.raises(ConfigError, match=r"preset=mine: .*modle"):
        compose_run(["preset=mine"], tmp_path)


# ── frozen, and its digest ───────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_can_be_set_once_composed():
    run = compose_run(["plan=custom", "generation.stop=[a]"])
    for node, name in (
        (run, "prompt"),
        (run, "model"),
        (run.model, "path"),
        (run.plan, "tp"),
        (run.generation, "seed"),
        (run.job, "stream"),
        (run.cluster, "device"),
        (run.kernels, "attention"),
    ):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(node, name, None)
        with pytest.raises(AttributeError, match="deleted"):
            delattr(node, name)
    with pytest.raises(AttributeError):
        run.generation.stop.append("b")
    with pytest.raises(TypeError):
        run.plan.rules["lm_head"] = "replicate"
    with pytest.raises(AttributeError):
        run.new_key = 1
    assert list(run.generation.stop) == ["a"]


def test_two_runs_share_nothing():
    one, other = compose_run([]), compose_run(["generation.seed=1"])
    assert one.generation.seed is None
    assert RunConf().generation.seed is None
    assert other.generation.seed == 1


def test_as_dict_is_plain_json():
    content = as_dict(compose_run(["plan=custom", "generation.stop=[a]", "prompt=hi"]))
    assert content["prompt"] == "hi"
    assert content["backend"] == "auto"
    assert content["generation"]["stop"] == ["a"]
    assert content["generation"]["reasoning_effort"] == "medium"
    assert content["plan"]["rules"]["model.layers.*.self_attn.o_proj"] == "rowwise"
    assert type(content["plan"]["rules"]) is dict
    assert content["job"]["template"] == "harmony"


def test_equal_runs_have_equal_digests_in_every_process():
    words = ["plan=tp", "generation.seed=3", "prompt=a, ü"]
    program = f"from gptoss_dist.config import *; print(digest(compose_run({words!r})))"
    others = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in (1, 2)
    ]
    assert {other.stdout.strip() for other in others} == {digest(compose_run(words))}
    assert digest(compose_run(list(reversed(words)))) == digest(compose_run(words))


def test_every_difference_changes_the_digest():
    variants = [
        [],
        ["plan=tp"],
        ["plan=tp", "plan.tp=2"],
        ["plan=custom"],
        ["prompt=a"],
        ["prompt="],
        ["prompt=null"],
        ["generation.seed=1"],
        ["generation.stop=[a]"],
        ["generation.stop=[a,a]"],
        ["model.path=x"],
        ["kernels=reference"],
        ["cluster.agree_every=1"],
        ["job.show_analysis=false"],
        ["job=plan"],
    ]
    digests = [digest(compose_run(words)) for words in variants]
    assert len(set(digests)) == len(variants)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in digests)


# ── no torch ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "argv", [["plan", "model=gpt_oss_120b", "plan=tp", "plan.tp=4"], ["--help"], ["synth", "--help"], ["modle=tiny"]]
)
def test_small_things_import_neither_torch_nor_transformers(argv):
    program = (
        "import sys\n"
        "from gptoss_dist.cli import main\n"
        f"main({argv!r})\n"
        "heavy = {'torch', 'transformers', 'openai_harmony', 'safetensors', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
