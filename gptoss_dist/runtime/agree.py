"""Do all ranks have the same configuration, packages and tokens, and did all succeed? If not, it is said who."""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Protocol, TypeVar

from gptoss_dist.errors import GptOssDistError, RankError

T = TypeVar("T")

PACKAGES = ("gptoss-dist", "torch", "transformers", "accelerate", "safetensors", "openai-harmony", "kernels", "triton")


class Gatherer(Protocol):
    """What is needed of a RankGroup."""

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's value, by rank."""


def versions() -> dict[str, str]:
    """The versions of Python and of the packages whose change can change results; `absent` where not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def check_agreement(
    group: Gatherer, name: str, value: str | Mapping[str, str], advice: str, size: int | None = None
) -> None:
    """Compare `value` on all ranks, which must all call this with the same `name`; of a mapping, entry by entry.

    `size`: only `size` neighbours each, a replica, have to agree. Raises RankError on every rank, naming the ranks that
    differ and what they have, followed by `advice`.
    """
    gathered = group.all_gather_object({name: value} if isinstance(value, str) else dict(value))
    keys = sorted({key for entries in gathered for key in entries})
    part = size or len(gathered)
    differences = []
    for first in range(0, len(gathered), part):
        ranks = range(first, first + part)
        for key in keys:
            values = [gathered[rank].get(key, "absent") for rank in ranks]
            if len(set(values)) > 1:
                prefix = "" if isinstance(value, str) else f"{key}: "
                differences.append(prefix + _describe(values, ranks))
    if differences:
        raise RankError(f"{name} differs between ranks: {'; '.join(differences)}. {advice}")


def together(group: Gatherer, act: Callable[[], T]) -> T:
    """What `act` gives on this rank, once it has succeeded on all ranks, which must all call this.

    Raises RankError on every rank if it failed on one, naming that rank and its reason: ranks that went on without it
    would wait for it for ever. Passed on are errors that a machine brings about; a defect ends its rank.
    """
    results, failure = [], None
    try:
        results.append(act())
    except (GptOssDistError, RuntimeError, OSError) as error:
        failure = error
    gathered = group.all_gather_object(None if failure is None else f"{failure}" or type(failure).__name__)
    for rank, problem in enumerate(gathered):
        if problem is not None:
            raise RankError(f"rank {rank}: {problem}") from failure
    return results[0]


class TokenFingerprint:
    """A running hash of the tokens that a rank has generated, compared every so many steps within its replica."""

    def __init__(self, ranks: Sequence[int]) -> None:
        """`ranks` of the replica: those of other replicas work on different requests and are not compared with."""
        self._ranks = ranks
        self._hash = hashlib.blake2b(digest_size=8)
        self._count = 0

    def update(self, token_ids: Iterable[int]) -> None:
        """Take in the tokens of one step, in order."""
        tokens = array("q", token_ids)
        self._hash.update(tokens.tobytes())
        self._count += len(tokens)

    def check(self, replica: Gatherer) -> None:
        """Compare over the group of the replica, all of whose ranks must call this after the same step.

        Raises RankError on every one of them.
        """
        values = replica.all_gather_object(f"{self._count} tokens, {self._hash.hexdigest()}")
        if len(set(values)) > 1:
            raise RankError(
                f"ranks generate different tokens: {_describe(values, self._ranks)}. "
                "Check that all ranks run the same GPU model, packages and settings, and start again"
            )


def _describe(values: Sequence[str], ranks: Sequence[int] | None = None) -> str:
    """`rank 1 has B; ranks 0, 2, 3 have A`: those that differ from most, in a tie from the first, come first."""
    ranks = range(len(values)) if ranks is None else ranks
    counts = Counter(values)
    common = max(values, key=lambda value: (counts[value], value == values[0]))
    parts = []
    for value in sorted(counts, key=lambda value: (value == common, values.index(value))):
        holders = [str(rank) for rank, held in zip(ranks, values, strict=True) if held == value]
        parts.append(
            f"{'rank' if len(holders) == 1 else 'ranks'} {', '.join(holders)} "
            f"{'has' if len(holders) == 1 else 'have'} {value}"
        )
    return "; ".join(parts)
