"""Stop texts: where a text that comes in pieces ends, wherever the pieces do."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the stop text that was complete first, wherever tokens end; and whether there was one."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


def possible_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop text."""
    lengths = (
        size for stop in stops for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
    )
    return max(lengths, default=0)


class StopFinder:
    """Takes pieces, gives what can be shown: never a part of a stop text. `stopped` once one was complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What may be shown now: all but an end that may be the beginning of a stop text; nothing after the stop."""
        if self.stopped:
            return ""
        shown, self.stopped = cut(self._held + piece, self._stops)
        held = 0 if self.stopped else possible_stop(shown, self._stops)
        self._held = shown[len(shown) - held :]
        return shown[: len(shown) - held]

    def flush(self) -> str:
        """What was held back: no more pieces come."""
        held, self._held = self._held, ""
        return "" if self.stopped else held
