"""The kernels' own code, run by Triton's interpreter on the CPU, against the plain-torch reference.

The interpreter must be chosen before Triton is imported, so these tests run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

PROGRAM = """
import sys
import torch
from gptoss_dist.kernels import experts_reference, experts_by_route, mxfp4
from gptoss_dist.kernels.packed import PackedExperts

experts, hidden, groups, top_k = 5, 96, 3, 2
generator = torch.Generator().manual_seed(int(sys.argv[2]))
def random_bytes(low, high, *shape):
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)
def normal(*shape):
    return torch.randn(shape, generator=generator)

packed = PackedExperts(
    random_bytes(0, 256, experts, groups, 64, hidden // 32, 16),
    random_bytes(118, 128, experts, groups, 64, hidden // 32),
    normal(experts, groups, 64),
    random_bytes(0, 256, experts, hidden, groups, 16), random_bytes(118, 128, experts, hidden, groups),
    normal(experts, hidden), 1.702, 7.0)
tokens = int(sys.argv[1])
hidden_TH = normal(tokens, hidden)
index_TK = torch.randint(-1, experts + 1, (tokens, top_k), generator=generator)
index_TK[0, 0] = 2  # one route at least is of an expert that is here: a sum of nothing has no relative error
weight_TK = torch.rand(tokens, top_k, generator=generator)

# Whatever the kernels allocate holds NaN until they write it.
empty = torch.empty
torch.empty = lambda *shape, **options: empty(*shape, **options).fill_(torch.nan)
experts_by_route._FEW_ROUTES = int(sys.argv[3])
found = experts_by_route.experts_forward(hidden_TH, index_TK, weight_TK, packed)
torch.empty = empty
wanted = experts_reference.experts_forward(hidden_TH.double(), index_TK, weight_TK.double(), packed)
error = (found - wanted).norm() / wanted.norm()
assert error < 1e-5, error.item()

unpacked = experts_by_route.unpack(packed.down_blocks, packed.down_scales, torch.float32)
assert torch.equal(unpacked, mxfp4.dequantize(packed.down_blocks, packed.down_scales, torch.float32))
"""


@pytest.mark.parametrize(
    ("tokens", "few_routes"), [(1, 512), (7, 512), (7, 0)], ids=["one token", "few routes", "many routes"]
)
def test_the_kernels_compute_what_the_reference_computes(tokens, few_routes):
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tokens), str(os.getpid()), str(few_routes)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
