from __future__ import annotations

import subprocess
import sys

import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.quantizers import quantizer_mxfp4
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from gptoss_dist.model.experts import PackedGptOssExperts
from gptoss_dist.model.quantizer import METHOD, PackedConfig, PackedQuantizer

LOAD = """
import sys, warnings
sys.modules["kernels"] = None  # importing it, or asking whether it is there, finds nothing
import torch
from pathlib import Path
from transformers.integrations import mxfp4
from gptoss_dist.config import compose_run
from gptoss_dist.kernels.registry import choose_kernels
from gptoss_dist.model.checkpoint import open_checkpoint
from gptoss_dist.model.load import load_model
from gptoss_dist.plan.degrees import Degrees

def refuse(*_, **__):
    raise AssertionError("something was dequantised")

mxfp4.convert_moe_packed_tensors = mxfp4.dequantize = mxfp4.load_and_swizzle_mxfp4 = refuse
run, checkpoint = compose_run(["model=tiny", "plan=single"]), open_checkpoint(Path(sys.argv[1]))
cpu = torch.device("cpu")
kernels = choose_kernels(run.kernels, cpu, True)
model = load_model(run.model, checkpoint, run.plan, Degrees(1, 1), kernels, cpu, 0).model
packed = {name: one for name, one in model.named_parameters() if one.dtype == torch.uint8}
assert len(packed) == 16, len(packed)
assert not any(name.endswith("_proj") and "experts" in name for name, _ in model.named_parameters())
name = "model.layers.0.mlp.experts.down_proj_blocks"
assert torch.equal(packed[name], checkpoint.slices[name][...])
assert model.config.quantization_config.quant_method == "gptoss_packed"
print("kernels" in sys.modules and sys.modules["kernels"] is not None)
"""


def test_packed_weights_load_as_bytes_with_the_kernels_package_out_of_reach(make_checkpoint):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD, str(make_checkpoint())], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "dequantiz" not in done.stderr


def test_transformers_finds_it_by_its_name():
    config = AutoQuantizationConfig.from_dict({"quant_method": METHOD, "modules_to_not_convert": ["lm_head"]})
    assert isinstance(config, PackedConfig)
    quantizer = AutoHfQuantizer.from_config(config)
    assert isinstance(quantizer, PackedQuantizer)
    assert not quantizer.is_serializable()
    assert not quantizer.is_trainable


def test_every_expert_module_is_replaced_on_the_meta_device():
    config = GptOssConfig(
        num_hidden_layers=3, hidden_size=64, intermediate_size=96, num_local_experts=4, vocab_size=64, pad_token_id=None
    )
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    PackedQuantizer(PackedConfig())._process_model_before_weight_loading(model)
    assert not any(isinstance(module, GptOssExperts) for module in model.modules())
    replaced = [module for module in model.modules() if isinstance(module, PackedGptOssExperts)]
    assert len(replaced) == 3
    assert all(parameter.is_meta for module in replaced for parameter in module.parameters())


def test_upstream_dequantises_where_the_kernels_package_is_missing(monkeypatch):
    # Once this fails, MXFP4 weights load packed without `kernels`, and a quantizer of our own may not be needed.
    monkeypatch.setattr(quantizer_mxfp4, "is_kernels_available", lambda *_: False)
    upstream = AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict({"quant_method": "mxfp4"}))
    assert not upstream.quantization_config.dequantize
    upstream.validate_environment()
    assert upstream.quantization_config.dequantize
