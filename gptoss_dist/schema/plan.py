"""The keys of `plan`: how the model lies over the ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


class AttentionPart(Enum):
    """How attention lies over the ranks of a replica: whole on each, or heads dealt out."""

    whole = "whole"
    tp = "tp"


class VocabularyPart(Enum):
    """How embedding and lm_head lie over the ranks: whole on each, lm_head alone in rows, or both in rows."""

    whole = "whole"
    head = "head"
    tp = "tp"


class ExpertPart(Enum):
    """How the experts lie over the ranks of a replica: whole everywhere, sliced in width, or whole ones dealt out."""

    whole = "whole"
    tp = "tp"
    ep = "ep"


@dataclass
class PlanConf(Node):
    """How the model lies over the ranks. World size = dp × tp; `tp` counts the ranks of one replica."""

    name: str = MISSING
    dp: int | None = 1
    tp: int | None = None
    attention: AttentionPart = AttentionPart.whole
    vocabulary: VocabularyPart = VocabularyPart.whole
    experts: ExpertPart = ExpertPart.whole
    rules: dict[str, str] = field(default_factory=dict)
    device_map: bool = False
    auto: bool = False
