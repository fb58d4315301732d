"""Why a run ends before its work is done."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["failed", "vanished", "stopped"]


@dataclass(frozen=True)
class Cause:
    """The one cause on which all ranks agree: what happened first, on which rank, and the exit status for all."""

    kind: Kind
    rank: int
    message: str
    status: int

    @classmethod
    def vanished(
        cls,
        rank: int,
        why: str = "its process ended without a word: killed, crashed, or its machine is lost",
    ) -> Cause:
        """A rank that is gone and could not say why."""
        return cls("vanished", rank, why, 1)

    @classmethod
    def stopped(cls, rank: int, signum: int) -> Cause:
        """A rank that was told to stop by a signal."""
        return cls("stopped", rank, f"stopped by {signal.Signals(signum).name}", 128 + signum)

    def to_dict(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Cause:
        """From the wire."""
        return cls(fields["kind"], int(fields["rank"]), str(fields["message"]), int(fields["status"]))
