"""Takes the weights that a rank's step needs from a loaded model, as plain local tensors, whatever its plan cut.

    model.model.layers[i].self_attn.{q,k,v}_proj ──► qkv [(Q + 2K)·D, H], one tensor; the three become views of it
                                     .o_proj     ──► output [H, Q·D]; its bias is added once, after the ranks' sum
    model.model.layers[i].mlp.experts            ──► functions of (hidden, expert ids, weights); ids count from the
                                                     first expert of this rank, and slices add their bias on one rank
    model.model.embed_tokens, model.lm_head      ──► this rank's rows, and the token of the first of them

No weight is held twice, and the model's own forward still runs over the same memory. Which parts are cut is read from
the shapes that the rank holds, not from the plan: a plan's own rules count as well. The modules are those of
transformers' models/gpt_oss/modeling_gpt_oss.py.

Shape legend: H hidden, Q query and K key-value heads here, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gptoss_dist.engine.cuts import Cut, attention_cut, experts_cut
from gptoss_dist.engine.weights import ExpertRows, Experts, LayerWeights, Split, Weights
from gptoss_dist.errors import PlanError
from gptoss_dist.kernels.experts_dense import DenseExperts, dense_forward
from gptoss_dist.model.load import Loaded, local
from gptoss_dist.shapes import Shape


def take_weights(loaded: Loaded, tp_rank: int) -> Weights:
    """The weights of `loaded` on the rank of place `tp_rank` in its replica.

    Raises PlanError, naming the module, where a rank holds something that the engine's step cannot use.
    """
    model: Any = loaded.model
    shape, base = loaded.checkpoint.shape, model.model
    cut = Cut(loaded.degrees.tp, tp_rank)
    attention, experts = _cuts_of_layers(cut, base.layers, shape)
    embedding, head = local(base.embed_tokens.weight).detach(), local(model.lm_head.weight).detach()
    split = Split(
        attention=attention,
        experts=experts is not None,
        embedding=cut.is_cut("model.embed_tokens.weight", embedding, (shape.vocab, shape.hidden), 0),
        head=cut.is_cut("lm_head.weight", head, (shape.vocab, shape.hidden), 0),
    )
    cut.check_whole("model.norm.weight", base.norm.weight, (shape.hidden,))
    return Weights(
        layers=_layers(cut, base.layers, shape, split.attention, experts),
        split=split,
        embedding_VH=embedding,
        embedding_first=cut.first(shape.vocab) if split.embedding else 0,
        head_VH=head,
        head_first=cut.first(shape.vocab) if split.head else 0,
        final_norm_H=base.norm.weight.detach(),
        inverse_frequency_F=base.rotary_emb.inv_freq.detach().to(device=head.device, dtype=torch.float32),
        attention_scaling=float(base.rotary_emb.attention_scaling),
        epsilon=float(model.config.rms_norm_eps),
        head_size=shape.head_dim,
        query_heads=shape.heads // (cut.ranks if attention else 1),
        kv_heads=shape.kv_heads // (cut.ranks if attention else 1),
        window=shape.sliding_window,
        top_k=shape.experts_per_token,
        first_expert=cut.first(shape.experts) if experts == "experts" else 0,
        expert_count=len(local(base.layers[0].mlp.experts.down_proj_bias)),
        vocabulary=shape.vocab,
        context=shape.max_position,
        packed=hasattr(base.layers[0].mlp.experts, "gate_up_proj_blocks"),
    )


def _cuts_of_layers(cut: Cut, layers: Any, shape: Shape) -> tuple[bool, str | None]:
    """Whether attention is cut, and what of the experts; PlanError if the layers differ."""
    found = {
        (attention_cut(cut, number, layer.self_attn, shape), experts_cut(cut, number, layer.mlp.experts, shape))
        for number, layer in enumerate(layers)
    }
    if len(found) > 1:
        raise PlanError(
            "model.layers: some layers are cut over the ranks and others are not, or in another way. backend=engine "
            "needs one rule for all layers (`*`); or take backend=transformers."
        )
    return found.pop()


def _layers(
    cut: Cut, layers: Any, shape: Shape, attention_is_cut: bool, expert_cut: str | None
) -> tuple[LayerWeights, ...]:
    bias = local(layers[0].mlp.experts.down_proj_bias)
    # Of experts in slices one rank adds the bias; the others share one tensor of zeros.
    no_bias = torch.zeros_like(bias) if expert_cut == "columns" and cut.rank > 0 else None
    taken = []
    for number, (layer, kind) in enumerate(zip(layers, shape.layer_types, strict=True)):
        _check_whole_parts(cut, f"model.layers.{number}", layer, shape)
        attention, router = layer.self_attn, layer.mlp.router
        experts, expert_rows = _experts(layer.mlp.experts, no_bias)
        adds_bias = attention.o_proj.bias is not None and not (attention_is_cut and cut.rank > 0)
        taken.append(
            LayerWeights(
                sliding=kind == "sliding_attention",
                input_norm_H=layer.input_layernorm.weight.detach(),
                qkv_CH=_join(attention, "weight"),
                qkv_bias_C=None if attention.q_proj.bias is None else _join(attention, "bias"),
                sinks_Q=attention.sinks.detach(),
                output_HC=attention.o_proj.weight.detach(),
                output_bias_H=local(attention.o_proj.bias).detach() if adds_bias else None,
                post_norm_H=layer.post_attention_layernorm.weight.detach(),
                router_EH=router.weight.detach(),
                router_bias_E=router.bias.detach(),
                experts=experts,
                expert_rows=expert_rows,
            )
        )
    return tuple(taken)


def _check_whole_parts(cut: Cut, base: str, layer: Any, shape: Shape) -> None:
    """Norms and router are whole on every rank."""
    cut.check_whole(f"{base}.input_layernorm.weight", layer.input_layernorm.weight, (shape.hidden,))
    cut.check_whole(f"{base}.post_attention_layernorm.weight", layer.post_attention_layernorm.weight, (shape.hidden,))
    cut.check_whole(f"{base}.mlp.router.weight", layer.mlp.router.weight, (shape.experts, shape.hidden))
    cut.check_whole(f"{base}.mlp.router.bias", layer.mlp.router.bias, (shape.experts,))


def _join(attention: Any, name: str) -> torch.Tensor:
    """The rows of q, k and v in one tensor, of which their parameters become views; done already: that tensor."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    parts = [getattr(one, name).detach() for one in projections]
    if _follow_each_other(parts):
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        whole: torch.Tensor = parts[0].as_strided(shape, parts[0].stride(), parts[0].storage_offset())
        return whole
    joined, first = torch.cat(parts), 0
    for one, part in zip(projections, parts, strict=True):
        setattr(one, name, nn.Parameter(joined[first : first + part.shape[0]], requires_grad=False))
        first += part.shape[0]
    return joined


def _follow_each_other(parts: Sequence[torch.Tensor]) -> bool:
    """Whether contiguous tensors lie one after the other in one piece of memory."""
    storages = {part.untyped_storage().data_ptr() for part in parts}
    ends = [part.storage_offset() + part.numel() for part in parts[:-1]]
    starts = [part.storage_offset() for part in parts[1:]]
    return len(storages) == 1 and ends == starts and all(part.is_contiguous() for part in parts)


def _experts(module: Any, down_bias: torch.Tensor | None) -> tuple[Experts, ExpertRows | None]:
    """The experts here with the kernels that loading chose; `down_bias` takes the place of theirs."""
    if not hasattr(module, "gate_up_proj_blocks"):
        dense = DenseExperts(
            gate_up=local(module.gate_up_proj).detach(),
            gate_up_bias=local(module.gate_up_proj_bias).detach(),
            down=local(module.down_proj).detach(),
            down_bias=local(module.down_proj_bias).detach() if down_bias is None else down_bias,
            alpha=float(module.alpha),
            limit=float(module.limit),
        )
        return partial(dense_forward, experts=dense), None
    packed = module.packed()
    if packed.counters is not None:  # another engine over this model, or its own forward, may run at the same time
        packed = dataclasses.replace(packed, counters=torch.zeros_like(packed.counters))
    if down_bias is not None:
        packed = dataclasses.replace(packed, down_bias=down_bias)
    rows = None if module.rows_kernel is None else partial(module.rows_kernel, packed=packed)
    return partial(module.kernel, packed=packed), rows
