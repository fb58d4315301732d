from __future__ import annotations

import shlex

from gptoss_dist.launcher.command import accelerate_command, shell_text, srun_command, torchrun_command

WORDS = ["generate", "plan=tp", "prompt=What's the weather?"]


def test_torchrun():
    start = ["torchrun", "--standalone", "--nproc_per_node=2"]
    assert torchrun_command(2, WORDS) == [*start, "-m", "gptoss_dist", *WORDS]
    assert torchrun_command(2, WORDS, script="launch/main.py") == [*start, "launch/main.py", *WORDS]


def test_accelerate():
    assert accelerate_command(4, ["plan"]) == [
        *("accelerate", "launch", "--config_file=launch/accelerate.yaml", "--num_processes=4"),
        *("launch/main.py", "plan"),
    ]


def test_srun():
    assert srun_command(8, ["plan"]) == [
        "srun",
        "--ntasks=8",
        "--kill-on-bad-exit=1",
        "python",
        "launch/main.py",
        "plan",
    ]


def test_text_for_a_shell_is_the_same_words():
    text = shell_text(torchrun_command(2, WORDS))
    assert text.startswith("torchrun --standalone --nproc_per_node=2 -m gptoss_dist generate plan=tp ")
    assert shlex.split(text) == torchrun_command(2, WORDS)
