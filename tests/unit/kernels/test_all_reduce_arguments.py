from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.all_reduce_arguments import check_partial


def test_a_partial_that_fits():
    check_partial(torch.zeros(4, 16), 4, 16, torch.float32)
    check_partial(torch.zeros(0, 16, dtype=torch.bfloat16), 4, 16, torch.bfloat16)


@pytest.mark.parametrize(
    "partial_TH",
    [torch.zeros(5, 16), torch.zeros(4, 8), torch.zeros(4, 16, dtype=torch.bfloat16)],
    ids=["too many tokens", "other columns", "another dtype"],
)
def test_one_that_does_not(partial_TH):
    tokens, columns = partial_TH.shape
    with pytest.raises(KernelError, match=rf"{tokens} × {columns} {partial_TH.dtype} .* at most 4 × 16 torch.float32"):
        check_partial(partial_TH, 4, 16, torch.float32)


def test_the_one_that_pushes_needs_no_triton():
    """Each all-reduce stands by itself: what they share lies apart."""
    program = "import sys; sys.modules['triton'] = None; import gptoss_dist.kernels.all_reduce_push"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
