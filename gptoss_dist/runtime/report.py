"""What an exception means for the run, and how it is said on standard error."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback

from gptoss_dist.errors import GptOssDistError
from gptoss_dist.runtime.cause import Cause


def cause_of(error: BaseException, rank: int) -> Cause:
    """The cause that `rank` puts forward when its work raised `error`."""
    if isinstance(error, KeyboardInterrupt):
        return Cause.stopped(rank, signal.SIGINT)
    if isinstance(error, GptOssDistError):
        return Cause("failed", rank, str(error), error.exit_status)
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
        message = error.code if isinstance(error.code, str) else f"ended with exit status {status}"
        return Cause("failed", rank, message, status)
    return Cause("failed", rank, f"{type(error).__name__}: {error}", 1)


def text_of(error: BaseException, cause: Cause, *, alone: bool) -> str:
    """The error as its rank says it: our own errors by their message, anything else, a defect, with its traceback."""
    who = "error" if alone else f"rank {cause.rank}"
    if isinstance(error, GptOssDistError | SystemExit):
        return f"{who}: {cause.message}"
    return f"{who}: unexpected failure\n{''.join(traceback.format_exception(error)).rstrip()}"


def say(text: str) -> None:
    """Write whole lines at once to standard error, so that those of several ranks do not mix."""
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
