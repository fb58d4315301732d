"""Logging that knows its rank: rank 0 speaks, the others only warn, and every line says who speaks."""

from __future__ import annotations

import logging
import os
import sys

_ROOT = "gptoss_dist"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this package; `name` is its `__name__`."""
    return logging.getLogger(name)


def rank_label() -> str:
    """`rank 2` inside a group of ranks, the empty string outside one. RANK wins over SLURM_PROCID."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    return f"rank {rank}" if rank is not None else ""


def set_up_logging(level: str = "info") -> None:
    """Send this package's records to standard error, so that standard output holds answers only.

    Ranks above 0 start at WARNING unless `level` is `debug`. Calling it again replaces the handler.
    """
    label = rank_label()
    is_first = label in ("", "rank 0")
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"[{label}] " if label else ""
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    root.addHandler(handler)
    root.propagate = False
    wanted = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(wanted if is_first or wanted < logging.INFO else max(wanted, logging.WARNING))
