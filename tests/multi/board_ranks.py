"""What each rank of `test_board_ranks.py` runs: messages that fill every slot of the shared memory."""

from __future__ import annotations

import os
import sys

from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.log import set_up_logging
from gptoss_dist.runtime.board import SLOT_BYTES, SLOTS
from gptoss_dist.runtime.dist import start


def exchange() -> None:
    """Prints whether the ranks had a board."""
    group = start("cpu", read_rank_env(os.environ))
    set_up_logging("info", group.rank)
    for number in range(2 * SLOTS):
        message = bytes([number]) * (SLOT_BYTES - 100)
        assert group.all_gather_object(message) == [message] * group.world_size
    sys.stdout.write("board\n" if group.board else "no board\n")  # at once, so that lines of ranks do not mix
    group.stop()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
