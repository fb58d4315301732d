"""Input files as lines: plain, gzip, zstd or Parquet by their name's end, and folders of the package `datasets`;
standard input is kept beside the output first.

Lines are read as bytes and end at `\\n` alone, so that no character inside a JSON text can break one.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_dist.batch.rows import check_table, files_of, is_folder, is_table, read_rows
from gptoss_dist.batch.unpack import Digested, unpacked_lines, zstd_library
from gptoss_dist.errors import PromptError
from gptoss_dist.files import user_path

_CHUNK = 1 << 20
_NOT_READ = (".arrow", ".feather", ".bz2", ".xz", ".zip", ".tar", ".tgz")


@dataclass(frozen=True)
class Source:
    """An input as it was read: `size` and `digest`, SHA-256, are of its file's bytes, or of all files of its folder."""

    path: Path
    size: int
    digest: str


@dataclass(frozen=True)
class Line:
    """A line that is not blank. `number` counts the lines of its file from 1."""

    path: Path
    number: int
    content: bytes


def find_inputs(given: Any, column: str | None = None) -> list[Path | None]:
    """The files that `job.input` names: a path, a pattern, or a list of them, each pattern's in order of name.

    None stands for `-`; `column` is that of tables. Raises PromptError for what matches no file, for kinds of files
    that are not read, and for a column that is not there.
    """
    names = [given] if isinstance(given, str) else list(given or ())
    if not names or not all(isinstance(one, str) and one for one in names):
        raise PromptError("job.input is missing: job.input=FILE, a pattern, a list [a.jsonl,b.jsonl], or - for stdin.")
    if "-" in names and len(names) > 1:
        raise PromptError("job.input=- is the whole input; it does not go with files.")
    found: list[Path | None] = []
    for name in names:
        found += [None] if name == "-" else _files(name)
    paths = [path.resolve() for path in found if path is not None]
    if repeated := [path for path in paths if paths.count(path) > 1]:
        raise PromptError(f"job.input names {repeated[0]} twice.")
    for path in found:
        if path is not None and is_table(path):
            check_table(path, column)
        elif column is not None:
            raise PromptError(
                f"job.column={column} is for Parquet files and datasets folders; {path or '-'} has lines."
            )
    return found


def keep_stdin(file: Path) -> Path:
    """Copy standard input to `file`, so that a restart can read it again."""
    temporary = file.with_name(file.name + ".new")
    with temporary.open("wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target, _CHUNK)
    return temporary.replace(file)


def read_lines(paths: Sequence[Path], digests: list[Source] | None = None, column: str | None = None) -> Iterator[Line]:
    """The lines of all files, one after the other; `digests` gets a `Source` for each file that was read whole.

    Raises PromptError that names a file that cannot be read to its end.
    """
    for path in paths:
        if is_table(path):
            yield from _table(path, digests, column)
            continue
        digest = hashlib.sha256() if digests is not None else None
        try:
            with path.open("rb") as file, unpacked_lines(path, Digested(file, digest)) as text:
                for number, content in enumerate(text, 1):
                    if content.strip():
                        yield Line(path, number, content)
            if digests is not None and digest is not None:
                digests.append(Source(path, path.stat().st_size, digest.hexdigest()))
        except (OSError, EOFError, zlib.error) as error:
            raise PromptError(f"job.input: {path} cannot be read to its end: {error}.") from None


def _table(path: Path, digests: list[Source] | None, column: str | None) -> Iterator[Line]:
    """Lines of a table, numbered as its rows."""
    try:
        for number, content in enumerate(read_rows(path, column), 1):
            yield Line(path, number, content)
        if digests is not None:
            digests.append(_source(path))
    except (OSError, ValueError) as error:
        raise PromptError(f"job.input: {path} cannot be read to its end: {error}.") from None


def _source(path: Path) -> Source:
    digest, size = hashlib.sha256(), 0
    for file in files_of(path):
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    return Source(path, size, digest.hexdigest())


def _files(name: str) -> list[Path]:
    path = user_path(name, "job.input")
    matches = [path] if path.exists() else [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no whole path
    files = [one for one in matches if one.is_file() or is_folder(one)]
    if not files:
        if path.is_dir():
            raise PromptError(
                f"job.input={name} is a folder, and none that `datasets` saved. Its files: job.input='{name}/*.jsonl'."
            )
        if path.exists():
            raise PromptError(
                f"job.input={name} is a pipe or a device, which gives its lines once: … | gptoss batch job.input=- …"
            )
        raise PromptError(f"job.input={name}: there is no such file.")
    if odd := [one for one in files if one.suffix in _NOT_READ and one.is_file()]:
        raise PromptError(f"job.input: {odd[0]}: {odd[0].suffix} is not read here; write it as JSONL first.")
    if any(one.suffix == ".zst" for one in files):
        zstd_library()
    return files
