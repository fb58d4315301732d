"""The process that trains the toy: it ends when the one that wants it does, however that ended."""

from __future__ import annotations

import os
import sys
import threading

from gptoss_dist.collector import uncollected


def end_with_parent() -> None:
    """Standard input is a pipe that the parent holds open and never writes to: its end is the parent's."""

    def wait() -> None:
        os.read(0, 1)  # sys.stdin has a lock, and the interpreter aborts at its end if another thread holds it
        os._exit(1)

    threading.Thread(target=wait, name="gptoss-parent", daemon=True).start()


if __name__ == "__main__":
    end_with_parent()  # before torch is imported, which takes seconds
    with uncollected():
        from gptoss_dist.model.tiny_training import main

    sys.exit(main())
