"""What `gptoss --help` and `gptoss JOB --help` print: the groups, their choices, and the keys of a job."""

from __future__ import annotations

import dataclasses
import textwrap

from gptoss_dist.config import choices, conf_folder
from gptoss_dist.schema.run import GROUPS, JOBS

_JOBS = {
    "generate": 'one answer:                 gptoss generate plan=tp prompt="Who are you?"',
    "chat": "a conversation:             gptoss chat plan=tp",
    "serve": "the OpenAI API over HTTP:   gptoss serve plan=tp --port 8000",
    "batch": "files of prompts:           gptoss batch plan=tp --input in.jsonl --output out.jsonl",
    "bench": "speed against the limit:    gptoss bench plan=tp backend=engine job.streams=[1,8]",
    "plan": "what each rank will hold:   gptoss plan model=gpt_oss_120b plan=tp plan.tp=4",
    "synth": "a random checkpoint:        gptoss synth --size 20b --out DIR",
    "tiny": "train the stand-in:         gptoss tiny",
    "doctor": "look before a run:          gptoss doctor model=gpt_oss_120b plan=tp",
    "prefetch": "stage what runs offline:    gptoss prefetch model=gpt_oss_120b --out DIR",
}


def text(job: str = "") -> str:
    """Help for the program, or for one job."""
    return _for_job(job) if job else _for_program()


def for_slurm() -> str:
    """Help for `gptoss slurm`."""
    file = conf_folder() / "slurm" / "default.yaml"
    return "\n".join(
        [
            "gptoss slurm JOB key=value …: that run as a SLURM batch script",
            "",
            '  gptoss slurm generate plan=tp plan.tp=4 slurm.time=01:00:00 prompt="…"      print the script',
            '  gptoss slurm generate plan=tp plan.tp=4 slurm.submit=true prompt="…"       submit it',
            "",
            f"{file.name}, each key as slurm.KEY=VALUE:",
            *(f"  {line}" for line in file.read_text().splitlines() if not line.startswith("name:")),
            "Jobs, groups and choices: gptoss --help",
        ]
    )


def _for_program() -> str:
    lines = ["gptoss JOB key=value … [--name value] [--conf DIR] [--json] [--help] [--version]", "", "Jobs"]
    lines += [f"  {name:10s} {line}" for name, line in _JOBS.items()]
    lines += ["", "Groups (group=choice or --group choice; one key: group.key=value)"]
    lines += [f"  {group:10s} {', '.join(choices(group))}" for group in GROUPS if group != "job"]
    lines += [
        "",
        "Usual overrides",
        "  model.path=DIR                 weights in a folder",
        "  plan=tp plan.tp=4              four ranks, every weight sliced",
        "  plan=ep plan.tp=4              four ranks, experts dealt out",
        "  generation=greedy              the most likely token",
        "  generation.max_new_tokens=64   the longest answer; else what is left of the model's context",
        "  kernels=reference              plain torch",
        "",
        "On a SLURM cluster: gptoss slurm JOB … prints or submits the batch script of that run (gptoss slurm --help).",
        "Several ranks: torchrun --nproc_per_node=N launch/main.py JOB …, accelerate launch …, srun python …,",
        "or no launcher at all: the ranks that the plan needs are then started here.",
        f"Every key with its comment: {conf_folder()}. More choices of your own: --conf DIR.",
    ]
    return "\n".join(lines)


def _for_job(job: str) -> str:
    file = conf_folder() / "job" / f"{job}.yaml"
    flags = [f"--{one.name.replace('_', '-')}" for one in dataclasses.fields(JOBS[job]) if one.name != "name"]
    shown = f"Flags: {', '.join([*flags, '--json', '--conf DIR'])}"
    lines = [
        f"gptoss {job}: {_JOBS[job].partition(':')[0]}",
        "",
        f"{file.name}, each key as job.KEY=VALUE or --KEY VALUE:",
    ]
    lines += [f"  {line}" for line in file.read_text().splitlines() if not line.startswith(("defaults", "name:"))]
    lines += [
        "",
        *textwrap.wrap(shown, 110, subsequent_indent=" " * 7, break_on_hyphens=False),
        "Groups and choices: gptoss --help",
    ]
    return "\n".join(lines)
