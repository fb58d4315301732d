"""How finely the attention of decoding sequences is cut at most, and what that takes: numbers alone, without Triton.

Shape legend: S sequences, Q query heads of this rank, D head size.
"""

from __future__ import annotations

MOST_SPLITS = 256
"""More of one sequence would not fit the registers of the kernel that joins them (`attention_decode`)."""
_FLOAT32 = 4


def split_bytes(sequences: int, query_heads: int, head_size: int) -> int:
    """At most, of what the splits of one full layer leave to be joined.

    Float32 for every split: values [Q, D], and [Q, 2] for the peak of their scores and the sum of exponentials. There
    are as many splits as are aimed at, and one more for each sequence.
    """
    return (MOST_SPLITS + sequences) * query_heads * (head_size + 2) * _FLOAT32
