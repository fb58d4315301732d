"""Where the program begins, so that Ctrl-C is no traceback while its modules are read: seconds from a slow disk."""

from __future__ import annotations

import signal
import sys


def console() -> None:
    """The console script `gptoss`, and what every other door calls; ends the process."""
    try:
        from gptoss_dist.cli import main

        status = main()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
