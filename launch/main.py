"""The file that torchrun, accelerate launch and srun run as every rank: `torchrun … launch/main.py JOB key=value …`."""

from __future__ import annotations

import sys

from gptoss_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
