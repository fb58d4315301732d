"""Standard output, which belongs to answers: written at once, and its reader may leave before the end (`| head`)."""

from __future__ import annotations

import os
import sys

from gptoss_dist.errors import OutputClosedError


def write(text: str) -> None:
    """Write and flush. Raises OutputClosedError if nobody reads any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered goes nowhere; else the interpreter complains once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputClosedError("Whoever read the standard output closed it before the end.") from None


def write_line(text: str) -> None:
    """The same, with the end of the line."""
    write(text + "\n")
