"""Many runs from one command, by Hydra's own --multirun: one for each of the values that words list.

    python launch/sweep.py --multirun job=generate plan=tp plan.tp=1,2 prompt=Hello

Words are Hydra's here: job=JOB, no --name, and a text with signs in it is quoted twice, prompt='"Hello, you"'. Each run
is a process of its own. They run here, one after the other; or, with hydra/launcher=submitit_slurm (the extra `sweep`),
each as a job of SLURM: slurm/README.md.
"""

from __future__ import annotations

import subprocess
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from gptoss_dist.config import register_schema, unquoted
from gptoss_dist.launcher.command import MODULE


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def sweep(_: DictConfig) -> None:
    """One run. Raises CompactHydraException, which Hydra shows as one line, if it failed: it has said why itself."""
    words = [unquoted(word) for word in HydraConfig.get().overrides.task]
    done = subprocess.run([sys.executable, "-m", MODULE, *words], check=False)
    if done.returncode:
        raise CompactHydraException(f"exit status {done.returncode}: gptoss {' '.join(words)}")


if __name__ == "__main__":
    register_schema()
    sweep()
