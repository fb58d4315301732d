"""The architecture numbers of gpt-oss, and the tensors of its checkpoints: pure arithmetic, without torch.

Two layouts of the experts are known, both in the names of transformers:

- packed, as the hub publishes it: MXFP4 blocks `[E, rows, groups, 16]`, two values a byte, and one scale for each group
  of 32, `[E, rows, groups]`; the rows of `gate_up_proj` are gate and up interleaved;
- dense, as `save_pretrained` writes a dequantised model: bf16 `gate_up_proj [E, H, 2I]` and `down_proj [E, I, H]`,
  the contracted dimension first.

Letters: E experts, H hidden, I intermediate, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

GROUP = 32
"""Values that share one MXFP4 scale (OCP Microscaling Formats, v1.0)."""

PAD_TOKEN = 199999
EOS_TOKEN = 200002
EOS_TOKENS = (200002, 199999, 200012)
"""<|return|>, <|endoftext|> and <|call|>: what the hub's generation config stops at."""

_DTYPE_BYTES = {"bfloat16": 2, "uint8": 1}
_NOT_QUANTIZED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
INTEGER_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "sliding_window": "sliding_window",
    "max_position": "max_position_embeddings",
}
"""Field of a shape → key of `config.json`."""
FIXED = {"model_type": "gpt_oss", "hidden_act": "silu", "attention_bias": True, "tie_word_embeddings": False}
"""What every gpt-oss `config.json` says alike."""


class TensorSpec(NamedTuple):
    """One tensor of a checkpoint; `dtype` is torch's name for it, `bfloat16` or `uint8`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding with YaRN (arXiv:2309.00071), or without (`rope_type="default"`: only `theta` counts)."""

    rope_type: str = "yarn"
    theta: float = 150000.0
    factor: float = 32.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    original_max_position: int = 4096

    def scaling(self) -> dict[str, Any] | None:
        """The `rope_scaling` entry of a hub config: all but theta; None without YaRN."""
        if self.rope_type == "default":
            return None
        return {
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_position,
            "rope_type": self.rope_type,
            "truncate": self.truncate,
        }

    def parameters(self) -> dict[str, Any]:
        """The `rope_parameters` dict of transformers 5: the scaling with theta."""
        return {"rope_theta": self.theta, **(self.scaling() or {"rope_type": "default"})}


@dataclass(frozen=True)
class Shape:
    """The numbers that make one gpt-oss: sizes in elements, `max_position` and `sliding_window` in tokens."""

    layers: int
    hidden: int
    intermediate: int
    experts: int
    experts_per_token: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    sliding_window: int
    max_position: int
    rope: Rope = Rope()
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0

    @property
    def layer_types(self) -> list[str]:
        """Kind of attention of each layer: sliding and full alternate, sliding first."""
        return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(self.layers)]

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The `rope_parameters` dict of transformers 5."""
        return self.rope.parameters()

    def problem(self) -> str | None:
        """What makes this shape impossible, in one sentence; None if it can be built."""
        for field in INTEGER_KEYS:
            if getattr(self, field) < 1:
                return f"{field} must be at least 1, and is {getattr(self, field)}"
        for field in ("hidden", "intermediate"):
            if getattr(self, field) % GROUP:
                return f"{field} must be a multiple of {GROUP} (one MXFP4 group), and is {getattr(self, field)}"
        if self.heads % self.kv_heads:
            return f"heads must be a multiple of kv_heads, and {self.heads} is none of {self.kv_heads}"
        if self.head_dim % 2:
            return f"head_dim must be even to be rotated, and is {self.head_dim}"
        if self.experts_per_token > self.experts:
            return f"{self.experts_per_token} experts per token are asked for, and there are {self.experts}"
        return None

    def tensors(self, dense: bool = False) -> Iterator[TensorSpec]:
        """Every tensor of the checkpoint: those outside the layers first, then layer by layer.

        `dense=False` is the hub's packed layout, `dense=True` the bf16 layout of transformers.
        """
        yield TensorSpec("model.embed_tokens.weight", (self.vocab, self.hidden), "bfloat16")
        yield TensorSpec("model.norm.weight", (self.hidden,), "bfloat16")
        yield TensorSpec("lm_head.weight", (self.vocab, self.hidden), "bfloat16")
        for layer in range(self.layers):
            for name, shape, dtype in self._layer_tensors(dense):
                yield TensorSpec(f"model.layers.{layer}.{name}", shape, dtype)

    def _layer_tensors(self, dense: bool) -> Iterator[TensorSpec]:
        yield TensorSpec("input_layernorm.weight", (self.hidden,), "bfloat16")
        yield from self._attention_tensors()
        yield TensorSpec("post_attention_layernorm.weight", (self.hidden,), "bfloat16")
        yield TensorSpec("mlp.router.weight", (self.experts, self.hidden), "bfloat16")
        yield TensorSpec("mlp.router.bias", (self.experts,), "bfloat16")
        yield from self._expert_tensors("gate_up_proj", 2 * self.intermediate, self.hidden, dense)
        yield from self._expert_tensors("down_proj", self.hidden, self.intermediate, dense)

    def _attention_tensors(self) -> Iterator[TensorSpec]:
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows_columns = {
            "q": (query, self.hidden),
            "k": (key_value, self.hidden),
            "v": (key_value, self.hidden),
            "o": (self.hidden, query),
        }
        for letter, shape in rows_columns.items():
            yield TensorSpec(f"self_attn.{letter}_proj.weight", shape, "bfloat16")
            yield TensorSpec(f"self_attn.{letter}_proj.bias", shape[:1], "bfloat16")
        yield TensorSpec("self_attn.sinks", (self.heads,), "bfloat16")

    def _expert_tensors(self, projection: str, rows: int, columns: int, dense: bool) -> Iterator[TensorSpec]:
        name = f"mlp.experts.{projection}"
        if dense:
            yield TensorSpec(name, (self.experts, columns, rows), "bfloat16")
        else:
            groups = columns // GROUP
            yield TensorSpec(f"{name}_blocks", (self.experts, rows, groups, GROUP // 2), "uint8")
            yield TensorSpec(f"{name}_scales", (self.experts, rows, groups), "uint8")
        yield TensorSpec(f"{name}_bias", (self.experts, rows), "bfloat16")

    def checkpoint_bytes(self, dense: bool = False) -> int:
        """Bytes of all tensors of the checkpoint, without file headers."""
        return sum(spec.nbytes for spec in self.tensors(dense))

    def parameter_count(self) -> int:
        """Number of weights: 116.8 billion for gpt-oss-120b, 20.9 for gpt-oss-20b."""
        return sum(math.prod(spec.shape) for spec in self.tensors(dense=True))

    def hub_config(self, dense: bool = False) -> dict[str, Any]:
        """The content of `config.json` as the hub publishes it; without the quantization entry if `dense`."""
        config: dict[str, Any] = {
            "architectures": ["GptOssForCausalLM"],
            **FIXED,
            **{key: getattr(self, field) for field, key in INTEGER_KEYS.items()},
            "attention_dropout": 0.0,
            "eos_token_id": EOS_TOKEN,
            "experts_per_token": self.experts_per_token,
            "initial_context_length": self.rope.original_max_position,
            "initializer_range": 0.02,
            "layer_types": self.layer_types,
            "output_router_logits": False,
            "pad_token_id": PAD_TOKEN,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": self.rope.scaling(),
            "rope_theta": self.rope.theta,
            "router_aux_loss_coef": 0.9,
            "swiglu_limit": self.swiglu_limit,
            "use_cache": True,
        }
        if not dense:
            config["quantization_config"] = {"modules_to_not_convert": list(_NOT_QUANTIZED), "quant_method": "mxfp4"}
        return config


_LARGE = Shape(
    layers=36,
    hidden=2880,
    intermediate=2880,
    experts=128,
    experts_per_token=4,
    heads=64,
    kv_heads=8,
    head_dim=64,
    vocab=201088,
    sliding_window=128,
    max_position=131072,
)

SIZES: dict[str, Shape] = {
    "120b": _LARGE,
    "20b": Shape(**{**vars(_LARGE), "layers": 24, "experts": 32}),
    "tiny": Shape(
        layers=4,
        hidden=64,
        intermediate=480,  # 15 groups of 32: uneven over 2, 4 and 8 ranks, as 90 groups are over 4 and 8
        experts=8,
        experts_per_token=2,
        heads=16,
        kv_heads=8,
        head_dim=16,
        vocab=201088,
        sliding_window=64,
        max_position=4096,
        rope=Rope(original_max_position=128),  # times the factor of 32: max_position, as in the large ones
    ),
}
"""The sizes known by name."""
