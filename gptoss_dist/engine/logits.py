"""Logits as a rank has them: all columns of the vocabulary, or its shard of them.

Shape legend: R rows that choose a token, C columns of this rank, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptoss_dist.engine.gather import all_gather_into


@dataclass(frozen=True)
class Logits:
    """One row for each token to choose. Padding rows may follow; nobody looks at them."""

    columns_RC: torch.Tensor
    first: int = 0
    """The token of the first column."""
    widths: tuple[int, ...] = ()
    """Columns of each rank of the replica, in their order; empty if this rank has all of them."""
    group: dist.ProcessGroup | None = None
    """The ranks of the replica; needed where the columns are spread over them."""
    quick_R: torch.Tensor | None = None
    """int64: the tokens of quick rows, where the step chose them itself (`quick.quick_tokens`)."""

    @property
    def whole(self) -> bool:
        """Whether this rank has the whole vocabulary."""
        return not self.widths

    @property
    def vocabulary(self) -> int:
        """V."""
        return sum(self.widths) or self.columns_RC.shape[1]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The whole logits [len(rows), V] of some rows, where they are not `whole`. Collective over the replica."""
        mine_RC = self.columns_RC.index_select(0, rows)
        widest = max(self.widths)
        mine_CR = torch.nn.functional.pad(mine_RC, (0, widest - mine_RC.shape[1])).t().contiguous()
        all_VR = mine_CR.new_empty(widest * len(self.widths), mine_CR.shape[1])
        all_gather_into(all_VR, mine_CR, self.group)
        parts = [all_VR[number * widest :][:width] for number, width in enumerate(self.widths)]
        return torch.cat(parts).t().contiguous()
