"""Tables that `datasets` itself has written."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import datasets
import pytest
from batch_work import answer, answers_in

from gptoss_dist.batch.rows import read_rows
from gptoss_dist.batch.sources import find_inputs, read_lines
from gptoss_dist.errors import ConfigError, PromptError

ROWS = {
    "id": ["a", "b", "c"],
    "text": ["one", "two\u2028", None],
    "messages": [
        [{"role": "user", "content": "hi", "name": None}],
        [{"role": "system", "content": "be short", "name": None}, {"role": "user", "content": "ho", "name": "me"}],
        [],
    ],
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch):
    datasets.disable_progress_bars()


@pytest.fixture(params=["file", "folder"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tmp_path / ("in.parquet" if request.param == "file" else "in"), ROWS)


def save(path: Path, rows: dict[str, list]) -> Path:
    table = datasets.Dataset.from_dict(rows)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(path)
    return path


def records(path: Path, column: str | None = None) -> list[dict]:
    return [json.loads(line) for line in read_rows(path, column)]


def test_a_column_holds_prompts_or_conversations(table: Path):
    assert records(table, "text") == [
        {"id": "a", "prompt": "one"},
        {"id": "b", "prompt": "two\u2028"},
        {"id": "c", "prompt": None},
    ]
    assert [list(one) for one in records(table, "messages")] == [["id", "messages"]] * 3
    assert records(table, "messages")[0]["messages"] == [{"role": "user", "content": "hi"}]


def test_without_a_column_a_row_is_a_record(table: Path):
    assert records(table)[1]["text"] == "two\u2028"
    assert records(table)[1]["messages"][1] == {"role": "user", "content": "ho", "name": "me"}


def test_a_table_is_answered_and_a_row_without_a_prompt_is_an_error_line(table: Path, tmp_path: Path):
    content = answer([table], tmp_path / "out.jsonl", column="text")
    assert answers_in(tmp_path / "out.jsonl") == {"a": "re: one", "b": "re: two\u2028", "c": "invalid_record"}
    assert content["complete"]
    with pytest.raises(ConfigError, match="another configuration"):
        answer([table], tmp_path / "out.jsonl", column="messages")


def test_rows_without_ids_are_numbered(tmp_path: Path):
    file = save(tmp_path / "x.parquet", {"prompt": [f"q{number}" for number in range(30)]})
    answer([file], tmp_path / "out.jsonl", share=7)
    assert answers_in(tmp_path / "out.jsonl") == {str(number + 1): f"re: q{number}" for number in range(30)}


def test_digests_are_those_of_the_files(table: Path):
    sources: list = []
    assert len(list(read_lines([table], sources, "text"))) == 3
    files = sorted(table.rglob("*.*")) if table.is_dir() else [table]
    content = b"".join(file.read_bytes() for file in files)
    assert (sources[0].size, sources[0].digest) == (len(content), hashlib.sha256(content).hexdigest())


def test_nothing_is_cached_or_written(table: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    cached = sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*"))
    records(table, "text")
    assert sorted(tmp_path.rglob("*")) == before
    assert sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*")) == cached


@pytest.mark.parametrize(
    ("column", "message"),
    [("txt", r"job.column=txt: .* has no such column. It has: id, text, messages"), (None, "none of the columns")],
)
def test_a_column_that_is_not_there_is_said_with_those_that_are(tmp_path: Path, column: str | None, message: str):
    rows = ROWS if column else {"text": ["x"]}
    file = save(tmp_path / "x.parquet", rows)
    with pytest.raises(PromptError, match=message):
        find_inputs(str(file), column)


def test_a_folder_of_splits_names_them(tmp_path: Path):
    split = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "both")
    with pytest.raises(PromptError, match=r"has the splits train, test. Name one: job.input=.*both/train"):
        find_inputs(str(tmp_path / "both"), "text")
    assert find_inputs(str(tmp_path / "both" / "test"), "text") == [tmp_path / "both" / "test"]


def test_a_column_is_for_tables_only(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(PromptError, match=r"job\.column=text is for Parquet files"):
        find_inputs([str(tmp_path / "*.jsonl")], "text")
    with pytest.raises(PromptError, match=r"job\.column=text is for Parquet files"):
        find_inputs("-", "text")


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, -20)])
def test_a_torn_file_is_named(tmp_path: Path, cut: slice):
    file = save(tmp_path / "x.parquet", ROWS)
    file.write_bytes(file.read_bytes()[cut])
    with pytest.raises(PromptError, match=f"{file} cannot be read: .*[^.]\\.$"):
        find_inputs(str(file), "text")


def test_rows_that_cannot_be_read_name_the_file(tmp_path: Path):
    file = save(tmp_path / "x.parquet", ROWS)
    content = file.read_bytes()
    file.write_bytes(content[:20] + b"\xff" * 40 + content[60:])
    with pytest.raises(PromptError, match=f"{file} cannot be read to its end"):
        list(read_lines([file], None, "text"))


def test_without_the_package_the_extra_is_named(table: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r"pip install 'gptoss-dist\[datasets\]'"):
        find_inputs(str(table), "text")
