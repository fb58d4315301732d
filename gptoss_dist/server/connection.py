"""One connection of a client: uvicorn's, with a bound on what it leaves unbounded, the head of a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0
"""A connection that has not sent the whole head of a request after this is closed; front.py has the time between."""
LONGEST_HEAD = 65536
"""Bytes of a request's first line and headers."""


class Connection(HttpToolsProtocol):
    """Closes itself when a head takes too long, and answers 400 to one that is too long."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _seen = 0
    """Bytes of this head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there: a head is awaited."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head has become too long."""
        self._seen += len(data)
        super().data_received(data)
        if self._in_head and self._seen > LONGEST_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {LONGEST_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """The first bytes of a head."""
        super().on_message_begin()
        self._in_head, self._seen = True, 0
        self._wait()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # the head came early, behind a request that is still being answered
        else:
            self.transport.close()
