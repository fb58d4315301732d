"""Input files as lines: plain, gzip or zstd by their name's end; standard input is kept beside the output first.

Lines are read as bytes and end at `\\n` alone, so that no character inside a JSON text can break one.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from gptoss_dist.errors import PromptError

_CHUNK = 1 << 20
_COLUMNS = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class Source:
    """An input file as it was read: `digest` is SHA-256 of its bytes."""

    path: Path
    size: int
    digest: str


@dataclass(frozen=True)
class Line:
    """A line that is not blank. `number` counts the lines of its file from 1."""

    path: Path
    number: int
    content: bytes


def find_inputs(given: Any) -> list[Path | None]:
    """The files that `job.input` names: a path, a pattern, or a list of them, each pattern's in order of name.

    None stands for `-`. Raises PromptError for what matches no file, and for kinds of files that are not read.
    """
    names = [given] if isinstance(given, str) else list(given or ())
    if not names or not all(isinstance(one, str) and one for one in names):
        raise PromptError("job.input is missing: job.input=FILE, a pattern, a list [a.jsonl,b.jsonl], or - for stdin.")
    if "-" in names and len(names) > 1:
        raise PromptError("job.input=- is the whole input; it does not go with files.")
    found: list[Path | None] = []
    for name in names:
        found += [None] if name == "-" else _files(name)
    if len(set(found)) != len(found):
        raise PromptError(f"job.input={given}: names a file twice.")
    return found


def keep_stdin(file: Path) -> Path:
    """Copy standard input to `file`, so that a restart can read it again."""
    temporary = file.with_name(file.name + ".new")
    with temporary.open("wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target, _CHUNK)
    return temporary.replace(file)


def read_lines(paths: Sequence[Path], digests: list[Source] | None = None) -> Iterator[Line]:
    """The lines of all files, one after the other; `digests` gets a `Source` for each file that was read whole.

    Raises PromptError that names a file that cannot be read to its end.
    """
    for path in paths:
        digest = hashlib.sha256() if digests is not None else None
        try:
            with path.open("rb") as file, _unpacked(path, _Digested(file, digest)) as text:
                for number, content in enumerate(text, 1):
                    if content.strip():
                        yield Line(path, number, content)
            if digests is not None and digest is not None:
                digests.append(Source(path, path.stat().st_size, digest.hexdigest()))
        except (OSError, EOFError, zlib.error) as error:
            raise PromptError(f"job.input: {path} cannot be read to its end: {error}.") from None


def _files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    matches = [path] if path.exists() else [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no whole path
    files = [one for one in matches if one.is_file()]
    if not files:
        raise PromptError(f"job.input={name}: there is no such file.")
    if odd := [one for one in files if one.suffix in _COLUMNS]:
        raise PromptError(f"job.input: {odd[0]}: {odd[0].suffix} is not read here; write it as JSONL first.")
    if any(one.suffix == ".zst" for one in files):
        _zstd()
    return files


class _Digested:
    """A file whose bytes go through a hash as they are read."""

    def __init__(self, file: BinaryIO | BufferedReader, digest: Any) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        if self._digest is not None:
            self._digest.update(content)
        return content


class _Unpacked:
    """Frames of zstd, one after the other; unlike the library's own reader it tells a torn one from a whole one."""

    def __init__(self, file: _Digested, library: Any) -> None:
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
def _unpacked(path: Path, file: _Digested) -> Iterator[Iterator[bytes]]:
    """Lines of the content, unpacked as the name says."""
    if path.suffix == ".gz":
        with gzip.GzipFile(fileobj=cast("IO[bytes]", file)) as unpacked:
            yield _lines(unpacked)
    elif path.suffix == ".zst":
        library = _zstd()
        try:
            yield _lines(_Unpacked(file, library))
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


def _zstd() -> Any:
    """The library that unpacks zstd."""
    try:
        import zstandard
    except ImportError:
        raise PromptError("job.input: .zst needs a package: pip install 'gptoss-dist[zstd]'.") from None
    return zstandard
