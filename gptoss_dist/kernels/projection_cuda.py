"""The projections of one token in CUDA C++ (`cuda/projection_stream.cu`), which load before others have ended.

All of a block's weights fit in its shared memory, so they are on their way while the short kernels before (norm, or
attention) run. More tokens, other formats, and weights that do not fit, go to the Triton kernels. The references are
`projection_reference` and `rotary_reference`; NOTES.md holds what was measured.

Shape legend: T tokens, C columns in, O columns out, Q query heads, K key-value heads of this rank, D head size,
F = D/2 angles, P pages, B tokens a page.
"""

from __future__ import annotations

import functools

import torch

from gptoss_dist.kernels import attention_begin_triton, attention_end_triton, cuda_program, projection_triton
from gptoss_dist.kernels.cuda_launch import Kernel
from gptoss_dist.kernels.device_facts import processor_count
from gptoss_dist.kernels.turning import Turning

FILES = ("operations.cuh", "projection_stream.cu")
_BLOCKS_A_PROCESSOR = 2
"""So that one of them finds room beside a small kernel that still runs."""
_SHARED_BYTES = 113 << 10
"""What each of two blocks may take of a Hopper's 228 kB, of which every block costs one."""
_MOST_WARPS = 16


def project(
    x_TC: torch.Tensor,
    weight_OC: torch.Tensor,
    bias_O: torch.Tensor | None,
    residual_TO: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `projection_triton.project`."""
    rows, columns = weight_OC.shape
    warps = _warps(rows, 1, weight_OC, x_TC, x_TC if residual_TO is None else residual_TO)
    if not warps:
        return projection_triton.project(x_TC, weight_OC, bias_O, residual_TO)
    out_TO = x_TC.new_empty(1, rows) if residual_TO is None else residual_TO
    kernel = _kernel(f"project_one<{columns}>", x_TC.device.index)
    kernel(
        (-(-rows // warps), 1), 32 * warps, warps * columns * 2,
        weight_OC, weight_OC if bias_O is None else bias_O, x_TC, out_TO,
        rows, int(bias_O is not None), int(residual_TO is not None), early=True,
    )  # fmt: skip
    return out_TO


def begin_attention(
    normed_TH: torch.Tensor,
    weight_CH: torch.Tensor,
    bias_C: torch.Tensor | None,
    turning: Turning,
) -> torch.Tensor:
    """See `attention_begin_triton.begin_attention`."""
    cosine_TF, sine_TF, slot_T, key_PBKD, value_PBKD, heads = turning
    pairs, hidden = weight_CH.shape[0] // 2, weight_CH.shape[1]
    warps = _warps(pairs, 2, weight_CH, normed_TH, cosine_TF, sine_TF, key_PBKD, value_PBKD)
    if not warps or slot_T.dtype != torch.int64:
        return attention_begin_triton.begin_attention(normed_TH, weight_CH, bias_C, turning)
    assert key_PBKD.stride(3) == value_PBKD.stride(3) == 1
    query_TQD = normed_TH.new_empty(1, heads.query, heads.size)
    kernel = _kernel(f"begin_attention_one<{hidden}, {heads.size // 2}>", normed_TH.device.index)
    kernel(
        (-(-pairs // warps), 1), 32 * warps, warps * hidden * 4,
        weight_CH, weight_CH if bias_C is None else bias_C, normed_TH, cosine_TF, sine_TF, slot_T, query_TQD,
        key_PBKD, value_PBKD, *key_PBKD.stride()[:3], *value_PBKD.stride()[:3],
        key_PBKD.shape[1], heads.query, heads.key_value, int(bias_C is not None), early=True,
    )  # fmt: skip
    return query_TQD


end_attention = functools.partial(attention_end_triton.end_attention, project_few=project)
"""See `attention_end_triton.end_attention`."""


def _warps(count: int, rows: int, weight: torch.Tensor, x_TC: torch.Tensor, *others: torch.Tensor) -> int:
    """Warps of a block, each with `rows` rows at a time of `count` in all; 0: the Triton kernels have to do it."""
    plain = all(part.dtype == torch.bfloat16 for part in (weight, x_TC, *others))
    pieces = weight.is_contiguous() and x_TC.is_contiguous() and weight.shape[1] % 8 == 0
    if len(x_TC) != 1 or not plain or not pieces:
        return 0
    blocks = _BLOCKS_A_PROCESSOR * processor_count(x_TC.device)
    warps = -(-count // blocks)
    return warps if warps <= _MOST_WARPS and warps * rows * weight.shape[1] * 2 <= _SHARED_BYTES else 0


def _kernel(name: str, device_index: int) -> Kernel:
    return cuda_program.kernels_of(FILES, (name,), device_index)[0]
