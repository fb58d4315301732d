"""Bytes of a file as lines, unpacked with gzip or zstd by the file's name, and hashed as they are read."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from gptoss_dist.errors import PromptError

_CHUNK = 1 << 20


class Digested:
    """A file whose bytes go through a hash as they are read."""

    def __init__(self, file: BinaryIO | BufferedReader, digest: Any) -> None:
        """`digest` is hashlib's, or None."""
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        content = self._file.read(size)
        if self._digest is not None:
            self._digest.update(content)
        return content


class _Frames:
    """Frames of zstd, one after the other; unlike the library's own reader it tells a torn one from a whole one."""

    def __init__(self, file: Digested, library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None
        self._rest = b""

    def read(self, size: int) -> bytes:
        """About `size` bytes or more; none at the end. Raises EOFError within a frame."""
        unpacked = b""
        while not unpacked:
            packed = self._rest or self._file.read(size)
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return b""
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            unpacked, self._rest = self._frame.decompress(packed), b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        return unpacked


@contextmanager
def unpacked_lines(path: Path, file: Digested) -> Iterator[Iterator[bytes]]:
    """Lines of the content, unpacked as the name says. Torn archives raise OSError, EOFError or zlib.error."""
    if path.suffix == ".gz":
        with gzip.GzipFile(fileobj=cast("IO[bytes]", file)) as unpacked:
            yield _lines(unpacked)
    elif path.suffix == ".zst":
        library = zstd_library()
        try:
            yield _lines(_Frames(file, library))
        except library.ZstdError as error:
            raise EOFError(str(error)) from None
    else:
        yield _lines(file)


def _lines(file: Any) -> Iterator[bytes]:
    """Split at line feeds; the last line may lack its own."""
    rest: list[bytes] = []
    while chunk := file.read(_CHUNK):
        *lines, last = chunk.split(b"\n")
        for line in lines:
            rest.append(line)
            yield b"".join(rest)
            rest = []
        rest.append(last)
    yield b"".join(rest)


def zstd_library() -> Any:
    """The library that unpacks zstd. Raises PromptError."""
    try:
        import zstandard
    except ImportError:
        raise PromptError("job.input: .zst needs a package: pip install 'gptoss-dist[zstd]'.") from None
    return zstandard
