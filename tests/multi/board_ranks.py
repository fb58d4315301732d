"""What each rank of `test_board_ranks.py` runs."""

from __future__ import annotations

import os
import sys
import time

from gptoss_dist.errors import RankError
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.log import set_up_logging
from gptoss_dist.runtime.board import SLOT_BYTES, SLOTS
from gptoss_dist.runtime.dist import start


def exchange() -> None:
    """Messages that fill every slot; prints whether the ranks had a board."""
    group = start("cpu", read_rank_env(os.environ))
    set_up_logging("info", group.rank)
    for number in range(2 * SLOTS):
        message = bytes([number]) * (SLOT_BYTES - 100)
        assert group.all_gather_object(message) == [message] * group.world_size
    sys.stdout.write("board\n" if group.board else "no board\n")  # at once, so that lines of ranks do not mix
    group.stop()


def wait_for_the_other() -> None:
    """Rank 0 waits for a message from rank 1, which waits to be ended."""
    group = start("cpu", read_rank_env(os.environ))
    assert group.board is not None
    group.all_gather_object("begun")
    print("waiting", flush=True)
    if group.rank == 1:
        time.sleep(600)
    try:
        group.broadcast_object(None, src=1)
    except RankError as error:
        print(error, flush=True)


def read_what_was_left() -> None:
    """Rank 1 sends as much as there is room for, and ends; rank 0 reads it later."""
    group = start("cpu", read_rank_env(os.environ))
    if group.rank == 0:
        time.sleep(2)
    print([group.broadcast_object(number, src=1) for number in range(SLOTS)], flush=True)
    os._exit(0)  # a goodbye would be waited for


if __name__ == "__main__":
    globals()[sys.argv[1]]()
