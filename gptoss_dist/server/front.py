"""The HTTP server in a thread of its own, with its own event loop; its socket is bound before anything is loaded."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.types import ASGIApp

from gptoss_dist.errors import ConfigError
from gptoss_dist.server.connection import Connection
from gptoss_dist.server.service import Service

_BACKLOG = 2048
FLUSH_S = 3.0
"""Connections that are still sending, or have sent half a request, after the engine has ended get this long."""
_IDLE_S = 75
"""Between two requests of a connection: longer than clients and proxies keep theirs (httpx 5 s, aiohttp 15, nginx 60),
for one that is closed here as its next request comes loses it."""
_CUT_S = 1.0
"""From there to the end of the thread."""
_PROMPT_THREADS = 2
"""Prompts are encoded by so many threads: the encoder lets no other one run, and the engine's must get its turn."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one. Raises ConfigError in one line that names the reason."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"job.host={host}: no such host: {error}. 127.0.0.1 is this machine, 0.0.0.0 all.") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without it an answer of two pieces waits for the client's delayed ACK: 40 ms on Linux.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_why(host, port, error)) from None
    return listener


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"job.port={port}: another program listens on {host}:{port}. Choose another; job.port=0 takes a free one."
        )
    if error.errno == errno.EACCES:
        return (
            f"job.port={port}: ports below 1024 need privileges that this user has not. Choose one from 1024 to 65535."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"job.host={host}: this machine has no such address. 127.0.0.1 is this machine, 0.0.0.0 all it has."
    return f"job.host={host} job.port={port}: cannot listen there: {error.strerror}."


class Front:
    """Serves `app` on `listener` from `start` to `stop`."""

    def __init__(self, app: ASGIApp, service: Service, listener: socket.socket) -> None:
        """Nothing is answered yet."""
        self._service, self._listener = service, listener
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gptoss-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens; all addresses are shown as this machine's own."""
        host, port = self._listener.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}"

    @property
    def is_running(self) -> bool:
        """Whether it answers, or may still be answering."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._running.wait()

    def stop(self) -> None:
        """Close idle connections, let the others end for FLUSH_S, cut those that have not, and stop."""
        assert self._loop is not None, "start comes first"
        self._server.should_exit = True
        self._thread.join(FLUSH_S)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cut)
            self._thread.join(_CUT_S)

    def _cut(self) -> None:
        """Their work ends as that of any client that leaves."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        # They warn of every write to a client that has left, and of all that is no HTTP: no news for a server.
        for name in ("asyncio", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._loop = loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_PROMPT_THREADS, "gptoss-prompt"))
        self._service.attach(loop)
        self._running.set()
        await self._server.serve(sockets=[self._listener])
