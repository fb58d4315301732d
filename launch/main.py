"""The file that torchrun, accelerate launch and srun run as every rank: `torchrun … launch/main.py JOB key=value …`."""

from __future__ import annotations

from gptoss_dist.console import console

if __name__ == "__main__":
    console()
