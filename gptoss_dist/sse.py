"""Server-sent events from bytes that are cut anywhere (WHATWG HTML, 9.2.6)."""

from __future__ import annotations


class EventParser:
    """Feed it what the network gives; it returns the `data` of each event that is complete."""

    def __init__(self) -> None:
        """Nothing has come."""
        self._rest = b""
        self._data: list[str] = []
        self._after_return = False

    def feed(self, chunk: bytes) -> list[str]:
        """The events that end within `chunk`; UnicodeDecodeError for a line that is not UTF-8."""
        if self._after_return and chunk.startswith(b"\n"):  # the second half of a line's end
            chunk = chunk[1:]
            self._after_return = False
        if not chunk:
            return []
        self._after_return = chunk.endswith(b"\r")
        text = (self._rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        return [event for line in lines if (event := self._line(line.decode("utf-8"))) is not None]

    def _line(self, line: str) -> str | None:
        """Take in one line; the event that it ends, if any."""
        if not line:
            event, self._data = "\n".join(self._data), []
            return event or None
        name, _, value = line.removeprefix("\ufeff").partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return None
