"""The hub's HTTP interface on loopback, over files that a test gives: what huggingface_hub asks for, as it asks.

It stands in for a service that tests cannot reach; its client is the real huggingface_hub in a process of its own,
which reads HF_ENDPOINT when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1f" * 20
LARGE = 1000
"""Files of so many bytes and more are listed with their SHA-256, as git-lfs does."""


@dataclass
class HubServer:
    """What the hub has, and what it did: `repositories` by (models or kernels, OWNER/NAME), then by path."""

    url: str
    repositories: dict[tuple[str, str], dict[str, bytes]]
    served: list[tuple[str, int]] = field(default_factory=list)
    """(path, bytes) of every file that was asked for whole or in part."""
    break_off: dict[str, int] = field(default_factory=dict)
    """Path → bytes after which the connection closes, once."""
    spoiled: dict[str, bytes] = field(default_factory=dict)
    """Path → what is sent in the place of the file that is listed."""

    def prefetch(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`gptoss prefetch WORDS` against this hub."""
        command = [sys.executable, "-m", "gptoss_dist", "prefetch", *words]
        variables = {**os.environ, "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", **environ}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def hub_server(repositories: dict[tuple[str, str], dict[str, bytes]]) -> Iterator[HubServer]:
    """A hub that answers on a free port of the loopback address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = HubServer(f"http://127.0.0.1:{server.server_port}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def checkpoint_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint on this machine, as a repository of the hub."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        else:
            kind, parts = (parts[0], parts[1:]) if parts[0] == "kernels" else ("models", parts)
            self._file(kind, "/".join(parts[:2]), "/".join(parts[4:]))

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is in `served`."""

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        files = self.hub.repositories.get((kind, name))
        if files is None or rest[1] not in ("main", "v1", COMMIT):
            code = "RepoNotFound" if files is None else "RevisionNotFound"
            self._send(404, b'{"error":"not found"}', {"X-Error-Code": code, "X-Error-Message": "not found"})
        elif rest[0] == "revision":
            self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        else:
            self._json([_listed(path, content) for path, content in sorted(files.items())])

    def _file(self, kind: str, name: str, path: str) -> None:
        content = self.hub.repositories[kind, name][path]
        headers = {"ETag": f'"{_listed_name(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        content = self.hub.spoiled.get(path, content)
        if self.command == "HEAD":
            self._send(200, content, headers)
            return
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = content[first:]
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        end = self.hub.break_off.pop(path, None)
        self.hub.served.append((path, len(body) if end is None else end))
        self._send(206 if first else 200, body, headers, end)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], end: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:end])
        if end is not None:
            self.close_connection = True


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _listed_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else _git_name(content)


def _listed(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_name(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
