from __future__ import annotations

import gzip
import hashlib
import io
import sys
from pathlib import Path

import pytest
import zstandard

from gptoss_dist.batch.sources import Source, find_inputs, keep_stdin, read_lines
from gptoss_dist.errors import PromptError

TEXT = b'{"a": "x\xe2\x80\xa8y"}\n\n  \r\n{"b": 2}\r\n' + b"x" * 3_000_000 + b"\nlast"
LINES = [(1, b'{"a": "x\xe2\x80\xa8y"}'), (4, b'{"b": 2}\r'), (5, b"x" * 3_000_000), (6, b"last")]


def packed(folder: Path) -> list[Path]:
    files = [folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")]
    files[0].write_bytes(TEXT)
    files[1].write_bytes(gzip.compress(TEXT[:20]) + gzip.compress(TEXT[20:]))
    pack = zstandard.ZstdCompressor().compress
    files[2].write_bytes(pack(TEXT[:20]) + pack(TEXT[20:]))
    return files


@pytest.mark.parametrize("kind", range(3))
def test_lines_whatever_packs_them(tmp_path: Path, kind: int):
    file = packed(tmp_path)[kind]
    digests: list[Source] = []
    assert [(line.number, line.content) for line in read_lines([file], digests)] == LINES
    content = file.read_bytes()
    assert digests == [Source(file, len(content), hashlib.sha256(content).hexdigest())]


def test_files_follow_each_other(tmp_path: Path):
    files = packed(tmp_path)
    assert [line.path for line in read_lines(files)] == [file for file in files for _ in LINES]


@pytest.mark.parametrize("kind", [1, 2])
def test_a_torn_archive_is_named(tmp_path: Path, kind: int):
    file = packed(tmp_path)[kind]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(PromptError, match=f"{file} cannot be read to its end"):
        list(read_lines([file]))


@pytest.mark.parametrize("name", ["x.gz", "x.zst"])
def test_what_is_no_archive_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(PromptError, match="cannot be read to its end"):
        list(read_lines([tmp_path / name]))


def test_paths_patterns_and_lists(tmp_path: Path):
    a, b, c = packed(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    assert find_inputs(str(a)) == [a]
    assert find_inputs(str(tmp_path / "*.jsonl*")) == [a, b, c]
    assert find_inputs([str(c), str(tmp_path / "[ab].*")]) == [c, a, b]
    assert find_inputs("-") == [None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "job.input is missing"),
        ([], "job.input is missing"),
        ([1], "job.input is missing"),
        (["-", "a.jsonl"], "does not go with files"),
        ("none*.jsonl", "there is no such file"),
        (["a.jsonl", "*.jsonl"], "a.jsonl twice"),
        ("a.arrow", "write it as JSONL first"),
        ("folder", r"is a folder.*folder/\*.jsonl"),
    ],
)
def test_what_names_no_input_is_refused(tmp_path: Path, monkeypatch, given: object, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.arrow").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(PromptError, match=message):
        find_inputs(given)


def test_zstd_without_its_package_names_the_extra(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    packed(tmp_path)
    with pytest.raises(PromptError, match=r"gptoss-dist\[zstd\]"):
        find_inputs(str(tmp_path / "c.jsonl.zst"))


def test_standard_input_is_kept_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    file = keep_stdin(tmp_path / "out.stdin")
    assert file.read_bytes() == TEXT
    assert list(tmp_path.iterdir()) == [file]
