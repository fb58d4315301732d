"""What only a GPU shows of CUDA graphs: a process group whose collectives they hold waits for them when it ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ALONE = textwrap.dedent("""
    import torch, torch.distributed as dist
    from gptoss_dist.engine.graphs import CudaGraphs

    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    player, values = CudaGraphs(device), torch.ones(8, device=device)
    player.prepare((1, 1), lambda: dist.all_reduce(values))
    player.play((1, 1))
    player.close()
    dist.destroy_process_group()
    print("ended")
""")


def test_a_group_ends_after_its_graphs():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=False)
    assert "ended" in done.stdout, done.stderr
