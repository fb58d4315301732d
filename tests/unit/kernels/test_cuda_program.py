"""NVRTC, which needs no GPU."""

from __future__ import annotations

import pytest

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.cuda_program import compile_cubin, kernels_of, missing, source_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOURCE = """
template <int FACTOR>
__global__ void scale(float* values) { values[threadIdx.x] *= FACTOR; }
"""


def test_instances_of_a_template_become_machine_code():
    code, names = compile_cubin(SOURCE, ["scale<2>", "scale<3>"], (9, 0))
    assert code.startswith(b"\x7fELF")
    assert len(set(names)) == 2
    assert all(name in code for name in names)


def test_a_mistake_is_told_in_the_words_of_the_compiler():
    with pytest.raises(KernelError) as caught:
        compile_cubin(SOURCE.replace("*=", "?="), ["scale<2>"], (9, 0))
    assert "error: expected" in str(caught.value)


def test_the_sources_are_part_of_the_package():
    assert "multiply_add" in source_of("operations.cuh")


def test_a_first_call_under_capture_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelError, match="Run the step once before capturing it"):
        kernels_of(("operations.cuh",), ("nothing<1>",), 0)


def test_a_library_that_is_not_there_is_told_before_a_kernel_is_wanted(monkeypatch):
    from cuda.bindings import nvrtc

    def not_found():
        raise RuntimeError("Failed to load\n  libnvrtc.so.13")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", not_found)
    assert missing() == "`cuda-bindings` finds no NVRTC: Failed to load libnvrtc.so.13"
