"""Standard output, which belongs to answers: written at once, and its reader may leave before the end (`| head`)."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from gptoss_dist.errors import OutputClosedError, OutputError


class _Forgiving(io.FileIO):
    """A descriptor that drops what it cannot take: a full disk, or nobody who reads."""

    def write(self, content: Any, /) -> int:
        """All of it counts as written."""
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


def set_up_output() -> None:
    """Write what an encoding other than UTF-8 lacks by its number (`\\u2026`), as standard error does by default.

    Standard error is never why a run ends: what cannot be said there (a full disk, a reader that left, closed before
    the start) goes nowhere, whether a message, a progress bar or a library's warning. Closed, `print` would take
    standard output.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    elif isinstance(_raw(sys.stderr), io.FileIO):
        forgiving = io.BufferedWriter(_Forgiving(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(forgiving, sys.stderr.encoding, "backslashreplace", line_buffering=True)
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


def _raw(stream: Any) -> Any:
    """What a text stream writes to in the end; with PYTHONUNBUFFERED no buffer is between."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _drop_what_is_left() -> None:
    """What is still buffered goes nowhere; else the interpreter complains once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
