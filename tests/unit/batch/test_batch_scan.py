from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_dist.batch.records import key_of
from gptoss_dist.batch.scan import scan
from gptoss_dist.errors import PromptError


def write(file: Path, *ids: str | None) -> Path:
    contents = [{"prompt": "x"} | ({} if name is None else {"id": name}) for name in ids]
    file.write_text("\n\n".join(map(json.dumps, contents)))
    return file


def ids(*files: Path) -> list[str]:
    found = scan(files)
    names = [record.id for record in found.records_of(files)]
    assert found.records == len(names)
    assert [found.key(number) for number in range(len(names))] == [key_of(name) for name in names]
    assert len(set(names)) == len(names)
    return names


def test_every_record_has_an_id_of_its_own(tmp_path: Path):
    assert ids(write(tmp_path / "a", "x", "y", "x", None, "x", "8")) == ["x", "y", "x#3", "7", "x#5", "8"]


def test_an_id_that_looks_like_a_renamed_one_is_renamed_too(tmp_path: Path):
    assert ids(write(tmp_path / "a", "x#2", "x", "x#3", "x", "x#4")) == ["x#2", "x", "x#3", "x#4", "x#4#5"]
    assert ids(write(tmp_path / "a", "x#2", "x#2", "x#2#2")) == ["x#2", "x#2#2", "x#2#2#3"]


@pytest.mark.parametrize(("names", "named", "unnamed"), [((None, "x", "1"), 5, 1), (("5", "x", None), 1, 5)])
def test_an_id_that_is_another_s_line_is_refused_with_both_lines(tmp_path: Path, names, named: int, unnamed: int):
    file = write(tmp_path / "a", *names)
    with pytest.raises(PromptError) as caught:
        scan([file])
    said = f"{file}:{named} has the id '{unnamed}', by which {file}:{unnamed} goes too"
    assert said in str(caught.value)
    assert len(ids(file, write(tmp_path / "b", "y"))) == 4, "of several files, places are no numbers"
    with pytest.raises(PromptError, match="goes too"):
        scan([file.rename(tmp_path / "c"), write(tmp_path / "b", f"{tmp_path}/c:{unnamed}")])


def test_a_line_may_name_its_own_number(tmp_path: Path):
    file = tmp_path / "a"
    file.write_text('{"id": "1"}\n{"id": 1, "prompt": "x"}\n')
    assert ids(file) == ["1", "1#2"]


def test_a_repeated_id_is_refused_and_counted(tmp_path: Path):
    file = write(tmp_path / "a", "x", "x", None)
    found = scan([file])
    assert (found.records, found.without_id, found.refused) == (3, 1, 1)
    refusal = list(found.records_of([file]))[1].refusal
    assert refusal is not None
    assert refusal.code == "duplicate_id"
    assert "'x' was used before" in refusal.message


def test_lines_of_several_files_have_their_file_in_their_id(tmp_path: Path):
    files = [write(tmp_path / "a", None), write(tmp_path / "b", "z", None)]
    assert ids(*files) == [f"{files[0]}:1", "z", f"{files[1]}:3"]


def test_the_digest_is_of_contents_in_their_order(tmp_path: Path):
    a, b = write(tmp_path / "a", "x"), write(tmp_path / "b", "y")
    c = write(tmp_path / "c", "x")
    assert scan([a]).digest == scan([c]).digest != scan([b]).digest
    assert scan([a, b]).digest != scan([b, a]).digest


def test_nothing_is_no_record(tmp_path: Path):
    (tmp_path / "a").write_text("\n \n")
    assert scan([tmp_path / "a"]).records == 0
