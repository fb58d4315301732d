"""The rendered scripts: every file of slurm/rendered is what its own first comment renders, and bash can read it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
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
        script_of(*["job=generate"] * (not words[0].startswith("job=")), "model=gpt_oss_120b", *words)
    return str(caught.value)


def test_there_are_rendered_examples():
    shown = {"one-node", "several-nodes", "srun", "accelerate", "staged-requeued", "array", "batch-requeued"}
    assert {path.stem for path in RENDERED} == shown


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_an_example_is_what_its_command_renders(path: Path):
    text = path.read_text()
    command = shlex.split(text.splitlines()[1].removeprefix("# "))
    assert command[:2] == ["gptoss", "slurm"]
    job, *words = command[2:]
    found = script_of(f"job={job}", *words).replace(f"job={job}", job)
    assert found == text, f"render it anew: {shlex.join(command)} > {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_bash_can_read_an_example(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("job=batch", "job.output=out.jsonl", "job.input=-"), "job.input"),
        (("job=batch", "job.output=out.jsonl", "job.input=[-]"), "job.input"),
        (("job=generate", "job.file=-"), "job.file"),
    ],
)
def test_standard_input_is_refused_by_name(words: tuple[str, ...], key: str):
    assert refusal(*words, "plan=tp", "plan.tp=2").startswith(f"{key}=- is standard input, and a job of SLURM has none")


def test_a_time_limit_is_one_that_slurm_reads():
    assert refusal("plan=tp", "plan.tp=2", "slurm.time=4h").startswith("slurm.time=4h: SLURM reads MINUTES, HH:MM:SS")
    for time in ("90", "90:00", "04:00:00", "1-0", "1-12:30", "2-00:00:00", "UNLIMITED"):
        assert f"#SBATCH --time={time}\n" in tp(2, f"slurm.time={time}")


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
    assert 'scontrol requeue "$job"' in script


def test_folders_and_names_with_spaces_are_quoted():
    keys = ("slurm.logs='my logs'", "slurm.job_name='my job'")
    assert directives(tp(2, *keys))["output"] == "'my logs/my job-%j.log'"
    for launcher, quoted in (
        ("torchrun", """--log-dir='my logs/my job-'"$SLURM_JOB_ID-ranks" """),
        ("srun", "'--output=my logs/my job-%j-rank%t.log'"),
    ):
        script = tp(2, *keys, f"slurm.launcher={launcher}")
        assert quoted in script
        assert "# First: mkdir -p 'my logs' " in script


def staging_of(source: Path, folder: Path) -> tuple[list[str], Path]:
    """What one task a node runs before the ranks start, and where the copy will be."""
    script = tp(2, f"model.path={source}", f"slurm.stage={folder}")
    line = next(line for line in script.splitlines() if line.startswith("staged="))
    words = shlex.split(script[script.index("srun ") :], comments=True)
    return words[words.index("bash") : words.index("bash") + 3], Path(shlex.split(line.removeprefix("staged="))[0])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as the hub's cache has it: links to files elsewhere."""
    folder = tmp_path / "weights" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"x" * 100_000)
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder.parent / "config.json").write_text("{}")
    return folder.parent


def test_weights_are_copied_once_and_again_when_they_change(weights: Path, tmp_path: Path):
    command, target = staging_of(weights, tmp_path / "local disk")
    for attempt in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("copying" in done.stdout) == (attempt == 0)
    assert (target / "inner" / "model.safetensors").read_bytes() == b"x" * 100_000
    assert not (target / "inner" / "model.safetensors").is_symlink()
    (tmp_path / "blob").write_bytes(b"y" * 100_000)
    os.utime(tmp_path / "blob", (1, 1))  # other weights of the same size
    assert "copying" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (target / "inner" / "model.safetensors").read_bytes() == b"y" * 100_000


def test_a_copy_that_was_cut_off_is_made_again(weights: Path, tmp_path: Path):
    command, target = staging_of(weights, tmp_path / "local")
    subprocess.run(command, capture_output=True, check=True)
    (target / ".complete").unlink()
    (target / "config.json").write_text("[]")
    assert "copying" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (target / "config.json").read_text() == "{}"


def test_jobs_that_come_at_once_copy_once(weights: Path, tmp_path: Path):
    command, _ = staging_of(weights, tmp_path / "local")
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [job.communicate(timeout=60)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4
    assert sum("copying" in one for one in said) == 1


def test_a_source_that_is_gone_fails_the_job(weights: Path, tmp_path: Path):
    command, _ = staging_of(weights, tmp_path / "local")
    (tmp_path / "blob").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "model.safetensors" in done.stderr


def test_weights_of_one_name_from_two_folders_are_two_copies(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "hf").mkdir(parents=True)
    targets = {staging_of(tmp_path / name / "hf", tmp_path / "local")[1] for name in ("a", "b")}
    assert len(targets) == 2


def test_ranks_and_nodes_must_go_together():
    said = refusal("plan=tp", "plan.tp=4", "slurm.nodes=3", "slurm.gpus_per_node=2")
    assert "slurm.nodes=3 with 2 ranks each are 6 ranks, and the plan needs 4" in said
    assert "takes as many ranks as there are" in refusal("plan=auto")
    assert "model.path=openai/gpt-oss-120b is none here" in refusal("plan=tp", "plan.tp=2", "slurm.stage=/scratch")


def test_an_open_plan_takes_the_gpus_of_all_nodes():
    script = script_of("job=generate", "model=gpt_oss_120b", "plan=auto", "slurm.nodes=2", "slurm.gpus_per_node=4")
    assert directives(script)["gpus-per-node"] == "4"
    assert "ranks=4\n" in script


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_shell_that_starts_accelerate_knows_how_many_ranks_there_are(nodes: int):
    script = tp(4, "slurm.launcher=accelerate", f"slurm.nodes={nodes}")
    exported = [line.split()[1:] for line in script.splitlines() if line.startswith("export ranks")]
    assert exported == [["ranks"] if nodes == 1 else ["ranks", "first_node", "port"]]


def accelerate_flags(script: str, processes: int) -> list[str]:
    (line,) = [line for line in script.splitlines() if "accelerate launch" in line]
    inside = shlex.split(shlex.split(line)[2].replace('"$((ranks * 1))"', str(processes)))
    return inside[inside.index("launch") + 1 : inside.index("-m")]


def test_accelerate_starts_one_process_as_it_is_told(tmp_path: Path):
    flags = accelerate_flags(tp(1, "slurm.launcher=accelerate"), 1)
    program = tmp_path / "program.py"
    program.write_text("print('started')")
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert "--multi_gpu" in accelerate_flags(tp(2, "slurm.launcher=accelerate"), 2)
