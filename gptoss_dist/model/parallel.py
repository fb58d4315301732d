"""From a plan to transformers' `DistributedConfig`, and to a model class that lives on the mesh of one replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.distributed import DistributedConfig
from transformers.distributed.utils import TransformersDeviceMesh

from gptoss_dist.model.styles import register_styles
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.rules import EXPERT_STYLES

_BASE = "model."
_HEAD_BY_DEFAULT = {"lm_head": "colwise_gather_output"}
"""What `tp_plan="auto"` does to lm_head in every supported version (`GptOssForCausalLM._tp_plan`)."""


def distributed_config(config: GptOssConfig, rules: Mapping[str, str], degrees: Degrees) -> DistributedConfig | None:
    """The `DistributedConfig` of one replica; None for one rank. Writes the rules into `config`.

    `tp_plan="auto"` reads the plan of the model's config, which upstream left empty for gpt-oss; ours goes there. A
    plan that leaves lm_head whole cannot be told by "auto" and is passed as a dictionary. Every rule of experts runs on
    the mesh of experts: ep_size is the number of ranks of the replica.
    """
    if degrees.tp == 1:
        return None
    register_styles()
    expert = {name: style for name, style in rules.items() if style in EXPERT_STYLES}
    tensor = {name: style for name, style in rules.items() if name not in expert}
    head = {name: style for name, style in tensor.items() if name == "lm_head"}
    base = {_relative(name): style for name, style in tensor.items() if name not in head}
    # A base plan that does not name the embedding gets it sharded unasked (`DistributedMixin.init_parallel_plans`).
    config.base_model_tp_plan = {"embed_tokens": "replicate", **base} if base else {}
    config.base_model_ep_plan = {_relative(name): style for name, style in expert.items()}
    tp_plan: Any = "auto" if head == _HEAD_BY_DEFAULT else {"lm_head": "replicate", **head}
    return DistributedConfig(tp_size=degrees.tp, tp_plan=tp_plan, ep_size=degrees.tp if expert else 1)


def model_class(degrees: Degrees, device_type: str) -> Any:
    """gpt-oss as transformers has it; with several replicas, on the ranks of this rank's own replica.

    transformers builds one mesh over the whole world and knows data parallelism only as FSDP, which gathers weights in
    every forward. Replicas share nothing while they generate, so each gets the mesh of its own ranks.
    """
    if degrees.dp == 1 or degrees.tp == 1:
        return GptOssForCausalLM

    class ReplicaGptOssForCausalLM(GptOssForCausalLM):  # type: ignore[misc]
        """gpt-oss on the ranks of one replica."""

        @classmethod
        def prepare_distribute_model(cls, distributed_config: Any, device_map: Any = None) -> Any:
            """The replica's mesh instead of the world's; the device is the one this rank is bound to."""
            if device_map is not None:
                raise ValueError("a replica over several ranks has no device_map")
            return distributed_config, _bound_device(device_type), _replica_mesh(degrees, device_type)

    return ReplicaGptOssForCausalLM


def _replica_mesh(degrees: Degrees, device_type: str) -> TransformersDeviceMesh:
    """The dense and the expert view of this rank's replica, cut out of meshes that every rank builds alike."""
    views = []
    for outer, inner in (("fsdp", "tp"), ("efsdp", "ep")):
        names = ("replica", "pp", "dp_replicate", outer, inner)
        world = init_device_mesh(device_type, (degrees.dp, 1, 1, 1, degrees.tp), mesh_dim_names=names)
        views.append(world[names[1:]])
    return TransformersDeviceMesh(*views)


def _bound_device(device_type: str) -> torch.device:
    return torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")


def _relative(name: str) -> str:
    """Plans of a config name modules without the prefix of the base model."""
    return name.removeprefix(_BASE)
