"""Parquet files and folders of the package `datasets` (its `save_to_disk`) as lines of JSON, one for each row.

With a column, a row asks for what is in it: a text is a prompt, a list is a conversation. Without one, a row is a
record as a line would be, by its columns `prompt`, `messages` or `body`. Its id is in `custom_id` or `id`, if it has
one of them.
Nothing is cached: a Parquet file is read as a stream, a folder is mapped.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_dist.errors import PromptError

_IDS = ("custom_id", "id")
_CONTENTS = ("body", "messages", "prompt")
_OF_A_FOLDER = ("state.json", "dataset_dict.json")


def is_table(path: Path) -> bool:
    """Whether a path is read by this module."""
    return path.suffix == ".parquet" or is_folder(path)


def is_folder(path: Path) -> bool:
    """Whether `datasets` saved it, whole or in splits."""
    return any((path / name).is_file() for name in _OF_A_FOLDER)


def files_of(path: Path) -> list[Path]:
    """All files of a table, in order of name."""
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def check_table(path: Path, column: str | None) -> None:
    """Raise PromptError for a table that cannot be read, or that lacks the column."""
    try:
        _open(path, column)
    except (OSError, ValueError) as error:
        raise PromptError(f"job.input: {path} cannot be read: {_one_line(error)}.") from None


def read_rows(path: Path, column: str | None) -> Iterator[bytes]:
    """A line for each row. Raises OSError or ValueError where the table is torn, PromptError as `check_table` does."""
    for row in _open(path, column):
        yield json.dumps(_record(row, column), ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _record(row: dict[str, Any], column: str | None) -> dict[str, Any]:
    record = {name: _without_nulls(value) for name, value in row.items() if value is not None or name == column}
    if column is not None:
        content = record.pop(column)
        record = {name: value for name, value in record.items() if name in _IDS}
        record["messages" if isinstance(content, list) else "prompt"] = content
    return record


def _without_nulls(value: Any) -> Any:
    """A column's objects have all keys that any row has: those that a row lacks are null."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _open(path: Path, column: str | None) -> Any:
    """The table, with the columns that matter. Raises PromptError, OSError, ValueError (pyarrow's is one)."""
    library = _datasets()
    if path.is_dir():
        table = library.load_from_disk(str(path))
        if isinstance(table, dict):
            splits = ", ".join(table)
            raise PromptError(
                f"job.input={path} has the splits {splits}. Name one: job.input={path / next(iter(table))}."
            )
    else:
        table = _stream(library, path)
    columns = list(table.column_names or [])
    if column is None and not any(name in columns for name in _CONTENTS):
        raise PromptError(
            f"job.input: {path} has none of the columns {', '.join(_CONTENTS)}. Say job.column=NAME, of: "
            f"{', '.join(columns)}."
        )
    if column is not None and column not in columns:
        raise PromptError(f"job.column={column}: {path} has no such column. It has: {', '.join(columns)}.")
    return table if column is None else table.select_columns([one for one in columns if one in (*_IDS, column)])


def _stream(library: Any, path: Path) -> Any:
    """A Parquet file, read as it is asked for. Its library puts a lock into a cache that it then does not use."""
    with tempfile.TemporaryDirectory() as cache:
        return library.load_dataset("parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache)


def _datasets() -> Any:
    """The library that reads tables; what it has to say is in its errors."""
    try:
        import datasets
    except ImportError:
        raise PromptError(
            "job.input: Parquet files and datasets folders need a package: pip install 'gptoss-dist[datasets]'."
        ) from None
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
