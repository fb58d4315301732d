"""Work for clients that are there: one that leaves ends it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_dist.server.api_error import ApiError


class Attended:
    """Cancels the work for a client that has left, wherever it is: queued, computing, or sending."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message | ApiError] = asyncio.Queue()

        async def listen() -> bool:
            """Whether the client left; else it sent too much, which the work is told."""
            while True:
                try:
                    message = await receive()
                except ApiError as error:
                    messages.put_nowait(error)
                    return False
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return True

        async def next_message() -> Message:
            message = await messages.get()
            if isinstance(message, ApiError):
                raise message
            return message

        work = asyncio.ensure_future(self._app(scope, next_message, send))
        listener = asyncio.create_task(listen())
        try:
            await asyncio.wait((work, listener), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and listener.result():
                work.cancel()
            await asyncio.wait((work,))
        finally:
            listener.cancel()
            work.cancel()
        if not work.cancelled():
            work.result()
