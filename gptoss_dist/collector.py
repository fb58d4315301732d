"""Python's garbage collector, kept away from what stays until the process ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports: the collector rests meanwhile, and never looks at what there is afterwards.

    torch and transformers make half a million objects, one in a hundred of them garbage. The collector walks them again
    and again while they come, and twice more at the end of the process: a quarter of what starting and ending costs.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
