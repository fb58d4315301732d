"""Packed MXFP4 loading through transformers' quantizer registry, without a download and without dequantising.

Upstream's own quantizer (transformers/quantizers/quantizer_mxfp4.py) turns to bfloat16, with a warning, whenever it
does not find the `kernels` package or a device it knows. This one is registered under a name of its own, which the
loader writes into the config, and does one thing: put `PackedGptOssExperts` where `GptOssExperts` was.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from gptoss_dist.model.experts import PackedGptOssExperts

METHOD = "gptoss_packed"
"""The `quant_method` under which transformers finds this quantizer."""


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Names the method; there is nothing to set."""

    def __init__(self, quant_method: str = METHOD, **_: Any) -> None:
        """Take what a config.json may hold beside the method, and keep none of it."""
        self.quant_method = quant_method


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces the experts before loading; the weights then load by name like any other."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        experts = [name for name, module in model.named_modules() if isinstance(module, GptOssExperts)]
        for name in experts:
            with torch.device("meta"):
                model.set_submodule(name, PackedGptOssExperts(model.config))

    def is_serializable(self) -> bool:
        """A sharded, regrouped model is not written back."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradient."""
        return False
