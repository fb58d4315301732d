"""Logging that knows its rank: rank 0 speaks, the others only warn, and every line says who speaks."""

from __future__ import annotations

import logging
import sys

_ROOT = "gptoss_dist"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this package; `name` is its `__name__`."""
    return logging.getLogger(name)


def set_up_logging(level: str = "info", rank: int | None = None) -> None:
    """Send this package's records to standard error, so that standard output holds answers only.

    `rank` is this process' rank among several, None where it is alone. Ranks above 0 start at WARNING unless `level` is
    `debug`. Calling it again replaces the handler.
    """
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if rank is None else f"[rank {rank}] %(message)s"))
    root.addHandler(handler)
    root.propagate = False
    wanted = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(wanted if not rank or wanted < logging.INFO else max(wanted, logging.WARNING))
