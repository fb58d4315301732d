"""Reads a gpt-oss `config.json`, the hub's or one that transformers 5 saved: shape, and how experts are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_dist.errors import CheckpointError, ConfigError
from gptoss_dist.files import read_json
from gptoss_dist.shapes import FIXED, INTEGER_KEYS, SIZES, Rope, Shape

_SWIGLU_ALPHA = 1.702
_BY_PATH = {"openai/gpt-oss-120b": "120b", "openai/gpt-oss-20b": "20b", "tiny": "tiny"}
"""Models that need not lie here to be planned for, by their `model.path` in `conf/model`."""


def shape_of(path: str) -> tuple[Shape, bool]:
    """Shape, and whether experts are packed, of `model.path`: from its config.json, or by a name that is known.

    Raises ConfigError where neither tells, CheckpointError for a config.json that is not gpt-oss'.
    """
    if path in _BY_PATH and not (path != "tiny" and Path(path).is_dir()):
        return SIZES[_BY_PATH[path]], True
    if not Path(path).is_dir():
        raise ConfigError(f"model.path={path}: no such folder, so the model's shape is not known. Set model.path=DIR.")
    file = Path(path) / "config.json"
    config = read_json(file)
    return read_shape(config, str(file)), is_packed(config)


def read_shape(config: Mapping[str, Any], source: str = "config.json") -> Shape:
    """Read the shape out of a `config.json`, the hub's or one that transformers 5 saved.

    `source` names the file in messages. Raises CheckpointError for another architecture, a missing or wrong number,
    and anything that this program would otherwise ignore (tied embeddings, another order of layers, …).
    """
    if config.get("model_type") != "gpt_oss":
        raise _wrong(source, "model_type", config.get("model_type"), "'gpt_oss'")
    for key, wanted in {**FIXED, "swiglu_alpha": _SWIGLU_ALPHA}.items():
        if config.get(key, wanted) != wanted:
            raise _wrong(source, key, config[key], repr(wanted))
    numbers = {field: _integer(config, key, source) for field, key in INTEGER_KEYS.items()}
    rope = _read_rope(config, source)
    eps = _number(config, "rms_norm_eps", source, 1e-5)
    shape = Shape(**numbers, rope=rope, rms_norm_eps=eps, swiglu_limit=_number(config, "swiglu_limit", source, 7.0))
    if problem := shape.problem():
        raise CheckpointError(f"{source}: {problem}. Take the config.json that belongs to the weights.")
    if (config.get("layer_types") or shape.layer_types) != shape.layer_types:
        raise _wrong(source, "layer_types", "another order", "sliding_attention and full_attention in turn")
    is_packed(config, source)
    return shape


def is_packed(config: Mapping[str, Any], source: str = "config.json") -> bool:
    """Whether a `config.json` describes MXFP4 experts (True) or bf16 ones (False); CheckpointError for others."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return False
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    if method != "mxfp4":
        raise _wrong(source, "quantization_config.quant_method", method, "'mxfp4', or no quantization_config (bf16)")
    return True


def _wrong(source: str, key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: {key} is {value!r}, and gpt-oss needs {wanted}. Is this the folder of a gpt-oss checkpoint?"
    )


def _integer(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(source, key, value, "a whole number")
    return value


def _number(config: Mapping[str, Any], key: str, source: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(source, key, value, "a number")
    return float(value)


def _read_rope(config: Mapping[str, Any], source: str) -> Rope:
    """Both spellings: `rope_scaling` + `rope_theta` (hub), and `rope_parameters` (transformers 5)."""
    entry = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 150000.0),
        **(config.get("rope_scaling") or {"rope_type": "default"}),
    }
    kind = entry.get("rope_type")
    theta = _number(entry, "rope_theta", source, config.get("rope_theta", 150000.0))
    if kind == "default":
        return Rope("default", theta, factor=1.0)
    if kind != "yarn":
        raise _wrong(source, "rope_type", kind, "'yarn'")
    return Rope(
        rope_type="yarn",
        theta=theta,
        factor=_number(entry, "factor", source),
        beta_fast=_number(entry, "beta_fast", source, 32.0),
        beta_slow=_number(entry, "beta_slow", source, 1.0),
        truncate=bool(entry.get("truncate", True)),
        original_max_position=_integer(entry, "original_max_position_embeddings", source),
    )
