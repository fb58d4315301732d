"""Packed experts through the hub's Triton kernels (`kernels-community/gpt-oss-triton-kernels`).

The kernels are OpenAI's triton_kernels (matmul_ogs, routing); how weights are laid out and called follows
transformers/integrations/mxfp4.py, on this rank's own experts or slices of them. The blocks as loaded are released once
they are laid out anew. Shape legend: T tokens, K experts per token, P = T·K routes, E experts here, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import hub
from gptoss_dist.kernels.packed import PackedExperts

_NOBODY = -1
"""What the kernels skip: a route to an expert of another rank."""
_GROUPS_TOGETHER = 2
"""On Hopper the kernels lay contracted columns out by 64; an odd group of 32 would be read past its end."""


def unavailable(device: torch.device) -> str | None:
    """Why these kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return f"{hub.EXPERTS} needs a GPU"
    if torch.cuda.get_device_capability(device) < (7, 5):
        return f"{hub.EXPERTS} needs compute capability 7.5 or later"
    return hub.problem_of(hub.EXPERTS)


def install(module: Any) -> None:
    """Lay the weights of a `PackedGptOssExperts` out for the kernels, and make them its kernel."""
    if module.interleaved:
        raise KernelError("These experts are laid out for kernels.experts=triton already; load the model anew for hub.")
    names = ("gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales")
    gate_up = _local(module.gate_up_proj_blocks), _local(module.gate_up_proj_scales)
    down = _local(module.down_proj_blocks), _local(module.down_proj_scales)
    module.kernel = HubExperts(hub.load(hub.EXPERTS), gate_up, down, module.alpha, module.limit)
    module.rows_kernel = None
    for name in names:
        setattr(module, name, nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False))


class HubExperts:
    """The kernels over one layer's weights."""

    def __init__(
        self,
        kernels: Any,
        gate_up: tuple[torch.Tensor, torch.Tensor],
        down: tuple[torch.Tensor, torch.Tensor],
        alpha: float,
        limit: float,
    ) -> None:
        """Blocks and scales as `PackedExperts` describes them."""
        self._kernels = kernels
        ogs = kernels.matmul_ogs
        swiglu = ogs.FnSpecs("swiglu", kernels.swiglu.swiglu_fn, ("alpha", "limit"))
        self._activation = ogs.FusedActivation(swiglu, (alpha, limit), 2)
        self._missing = -down[1].shape[2] % _GROUPS_TOGETHER
        self._gate_up = self._lay_out(*(self._pad(one, dim=1).flatten(1, 2) for one in gate_up))
        self._down = self._lay_out(*(self._pad(one, dim=2) for one in down))

    def __call__(
        self, hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
    ) -> torch.Tensor:
        """See `experts_reference.experts_forward`; of `packed` only the biases are used."""
        with torch.cuda.device(hidden_TH.device):
            routing, gather, scatter = self._route(index_TK, weight_TK, packed.expert_count)
            multiply = self._kernels.matmul_ogs.matmul_ogs
            weight, precision = self._gate_up
            inner = multiply(
                hidden_TH,
                weight,
                self._pad(packed.gate_up_bias, dim=1).flatten(1).float(),
                routing,
                gather_indx=gather,
                precision_config=precision,
                fused_activation=self._activation,
            )
            weight, precision = self._down
            out_TH: torch.Tensor = multiply(
                inner,
                weight,
                packed.down_bias.float(),
                routing,
                scatter_indx=scatter,
                precision_config=precision,
                gammas=routing.gate_scal,
            )
        return out_TH

    def _pad(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Groups of zeros after the last one: they give inner activations of zero, and nothing to add."""
        if not self._missing:
            return tensor
        shape = (*tensor.shape[:dim], self._missing, *tensor.shape[dim + 1 :])
        return torch.cat((tensor, tensor.new_zeros(shape)), dim=dim)

    def _lay_out(self, blocks: torch.Tensor, scales: torch.Tensor) -> tuple[Any, Any]:
        """Blocks [E, rows, groups, 16], scales [E, rows, groups] to the kernels' weight [E, columns, rows]."""
        tensors, layouts, ogs = self._kernels.tensor, self._kernels.tensor_details.layout, self._kernels.matmul_ogs
        layout, options = layouts.make_default_matmul_mxfp4_w_layout(mx_axis=1)
        experts, rows, groups, _ = blocks.shape
        values = blocks.flatten(2).transpose(-2, -1)
        weight = tensors.convert_layout(tensors.wrap_torch_tensor(values, dtype=tensors.FP4), layout, **options)
        weight.shape = torch.Size([experts, 32 * groups, rows])
        strided = tensors.wrap_torch_tensor(scales.transpose(-2, -1))
        scale = tensors.convert_layout(strided, layouts.StridedLayout)
        flex = ogs.FlexCtx(rhs_data=ogs.InFlexData())
        return weight, ogs.PrecisionConfig(weight_scale=scale, flex_ctx=flex)

    def _route(self, index_TK: torch.Tensor, weight_TK: torch.Tensor, experts: int) -> tuple[Any, Any, Any]:
        """Routes sorted by expert; those of other ranks come last and are marked as nobody's."""
        routing = self._kernels.routing
        index_P = index_TK.reshape(-1)
        here_P = (index_P >= 0) & (index_P < experts)
        key_P = torch.where(here_P, index_P, experts)
        order_P = key_P.argsort(stable=True)
        place_P = order_P.argsort()
        counts = torch.zeros(experts + 1, dtype=torch.int32, device=index_P.device)
        counts = counts.scatter_add_(0, key_P, torch.ones_like(key_P, dtype=torch.int32))[:experts]
        source_P = torch.where(here_P[order_P], order_P, _NOBODY).int()
        target_P = torch.where(here_P, place_P, _NOBODY).int()
        blocks = routing.compute_expt_data_torch(counts, experts, index_P.numel())
        data = routing.RoutingData(weight_TK.reshape(-1)[order_P], counts, experts, index_TK.shape[1], blocks)
        gather = routing.GatherIndx(src_indx=source_P, dst_indx=target_P)
        return data, gather, routing.ScatterIndx(src_indx=target_P, dst_indx=source_P)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
