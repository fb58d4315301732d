"""Plays steps as on a CPU, and writes down which."""

from __future__ import annotations

from collections.abc import Callable

from gptoss_dist.engine.graphs import Key, NoGraphs


class Recorder(NoGraphs):
    """What was prepared and played, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[Key] = []
        self.played: list[Key] = []

    def prepare(self, key: Key, function: Callable[[], object]) -> None:
        super().prepare(key, function)
        self.prepared.append(key)

    def play(self, key: Key) -> None:
        self.played.append(key)
        super().play(key)
