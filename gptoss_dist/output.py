"""Standard output, which belongs to answers: written at once, and its reader may leave before the end (`| head`)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from gptoss_dist.errors import OutputClosedError, OutputError


def set_up_output() -> None:
    """Write what an encoding other than UTF-8 lacks by its number (`\\u2026`), as standard error does by default.

    What is said on a standard error that was closed before the start goes nowhere: `print` would take standard output.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write and flush. Raises OutputClosedError if nobody reads any more, OutputError if it cannot be written."""
    if sys.stdout is None:  # closed by whoever started this process
        raise OutputError("There is no standard output: it was closed before the start.")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_what_is_left()
        raise OutputClosedError("Whoever read the standard output closed it before the end.") from None
    except OSError as error:
        _drop_what_is_left()
        raise OutputError(f"The standard output cannot be written: {error.strerror}.") from None


def write_line(text: str) -> None:
    """The same, with the end of the line."""
    write(text + "\n")


def write_json(content: dict[str, Any]) -> None:
    """One object on one line. Where the encoding is not UTF-8, letters beyond ASCII are escaped as JSON does."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    write_line(json.dumps(content, ensure_ascii=not encoding.lower().replace("-", "").startswith("utf8")))


def _drop_what_is_left() -> None:
    """What is still buffered goes nowhere; else the interpreter complains once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
