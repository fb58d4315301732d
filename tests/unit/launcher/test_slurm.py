"""The rendered scripts: every file of slurm/rendered is what its own first comment renders, and bash can read it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError
from gptoss_dist.jobs.slurm import run_slurm

ROOT = Path(__file__).parents[3]
RENDERED = sorted((ROOT / "slurm" / "rendered").glob("*.sbatch"))


def script_of(*words: str) -> str:
    return str(run_slurm(compose_run(list(words)), words).content["script"])


def tp(ranks: int, *words: str) -> str:
    return script_of("job=generate", "model=gpt_oss_120b", "plan=tp", f"plan.tp={ranks}", *words)


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        script_of("job=generate", "model=gpt_oss_120b", *words)
    return str(caught.value)


def test_there_are_rendered_examples():
    assert {path.stem for path in RENDERED} == {"one-node", "several-nodes", "srun", "accelerate", "staged-requeued"}


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_an_example_is_what_its_command_renders(path: Path):
    text = path.read_text()
    command = shlex.split(text.splitlines()[1].removeprefix("# "))
    assert command[:3] == ["gptoss", "slurm", "generate"]
    words = ["job=generate", *command[3:]]
    found = script_of(*words).replace("job=generate", "generate")
    assert found == text, f"render it anew: {shlex.join(command)} > {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_bash_can_read_an_example(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_options_reach_sbatch():
    script = tp(
        4,
        "slurm.partition=gpu",
        "slurm.account=me",
        "slurm.qos=high",
        "slurm.time=04:00:00",
        "slurm.constraint=h200",
        "slurm.options=['--reservation=night','--mail-type=END']",
    )
    found = directives(script)
    assert found["partition"] == "gpu"
    assert found["account"] == "me"
    assert found["qos"] == "high"
    assert found["time"] == "04:00:00"
    assert found["constraint"] == "h200"
    assert found["gpus-per-node"] == "4"
    assert found["reservation"] == "night"
    assert found["mail-type"] == "END"
    assert found["output"] == "logs/gptoss-%j.log"
    assert {"exclusive", "no-requeue"} <= found.keys()
    assert "signal" not in found


def test_words_of_slurm_stay_out_of_the_script_and_others_keep_their_quotes():
    script = tp(2, "slurm.nodes=1", "prompt=What's up?")
    (line,) = [line for line in script.splitlines() if line.strip().startswith("-m gptoss_dist")]
    words = shlex.split(line)
    assert words == [
        "-m",
        "gptoss_dist",
        "job=generate",
        "model=gpt_oss_120b",
        "plan=tp",
        "plan.tp=2",
        "prompt=What's up?",
    ]


def test_an_array_has_a_log_for_each_task():
    found = directives(tp(2, "slurm.array=8", "slurm.at_once=2"))
    assert found["array"] == "0-7%2"
    assert found["output"] == "logs/gptoss-%A_%a.log"


def test_part_of_a_node_shares_it():
    found = directives(tp(2, "slurm.cpus_per_node=16", "slurm.memory=200G"))
    assert (found["cpus-per-task"], found["mem"]) == ("16", "200G")
    assert "exclusive" not in found


def test_a_container_is_srun_s():
    script = tp(2, "slurm.container=my image.sqsh")
    assert "--container-image='my image.sqsh'" in script


def test_a_job_that_is_requeued_is_told_before_its_time_is_up():
    script = tp(2, "slurm.requeue=true", "slurm.signal_s=90")
    assert directives(script)["signal"] == "B:USR1@90"
    assert "requeue" in directives(script)
    assert "trap finish USR1" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_ranks_and_nodes_must_go_together():
    said = refusal("plan=tp", "plan.tp=4", "slurm.nodes=3", "slurm.gpus_per_node=2")
    assert "slurm.nodes=3 with 2 ranks each are 6 ranks, and the plan needs 4" in said
    assert "takes as many ranks as there are" in refusal("plan=auto")
    assert "model.path=openai/gpt-oss-120b is none here" in refusal("plan=tp", "plan.tp=2", "slurm.stage=/scratch")


def test_an_open_plan_takes_the_gpus_of_all_nodes():
    script = script_of("job=generate", "model=gpt_oss_120b", "plan=auto", "slurm.nodes=2", "slurm.gpus_per_node=4")
    assert directives(script)["gpus-per-node"] == "4"
    assert "ranks=4\n" in script
