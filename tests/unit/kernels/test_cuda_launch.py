"""What is handed to the driver, against NVIDIA's own bindings, which need no GPU to make the same structures."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from gptoss_dist.kernels.cuda_launch import LaunchAttribute, LaunchConfig, layout_of, packed

driver = pytest.importorskip("cuda.bindings.driver", reason="`cuda-bindings` is published for Linux and Windows")


def test_a_configuration_lies_in_memory_as_the_bindings_lay_it():
    theirs = driver.CUlaunchConfig()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 7, 5, 3
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 96, 2, 1
    theirs.sharedMemBytes = 12345
    theirs.hStream = driver.CUstream(0x123456789A)
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    theirs.attrs, theirs.numAttrs = [attribute], 1
    ours = LaunchConfig.from_address(theirs.getPtr())
    assert (ours.grid_x, ours.grid_y, ours.grid_z) == (7, 5, 3)
    assert (ours.block_x, ours.block_y, ours.block_z, ours.shared_bytes) == (96, 2, 1, 12345)
    assert (ours.stream, ours.attribute_count) == (0x123456789A, 1)
    assert (ours.attributes[0].id, ours.attributes[0].value[0]) == (6, 1)
    assert int(attribute.id) == 6
    assert ctypes.sizeof(LaunchAttribute) == 72


def test_parameters_lie_as_a_c_compiler_lays_them():
    tensor = torch.arange(3)
    arguments = (7, tensor, 1.5, tensor[1:], -2)
    layout = layout_of(arguments)
    assert layout.size == 36  # 4 and a gap of 4, 8, 4 and a gap of 4, 8, 4
    extra, (buffer, size) = packed(layout, arguments)
    assert struct.unpack_from("i", buffer, 0) == (7,)
    assert struct.unpack_from("QfxxxxQi", buffer, 8) == (tensor.data_ptr(), 1.5, tensor.data_ptr() + 8, -2)
    assert [extra[0], extra[2], extra[4]] == [1, 2, None]
    assert extra[1] == ctypes.addressof(buffer)
    assert (extra[3], size.value) == (ctypes.addressof(size), 36)


def test_a_parameter_of_another_kind_than_the_first_time_is_refused():
    layout = layout_of((1, 2.0))
    with pytest.raises(struct.error):
        packed(layout, (1.5, 2.0))
