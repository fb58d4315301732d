from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss_dist.batch.finished import Finished
from gptoss_dist.batch.part import Broken, Found, PartWriter, read_part
from gptoss_dist.batch.records import key_of
from gptoss_dist.errors import GptOssDistError


def write(file: Path, *ids: str) -> Path:
    writer = PartWriter(file)
    for name in ids:
        writer.write({"custom_id": name, "text": "é\u2028\n"})
    writer.close()
    return file


def ids_in(file: Path) -> set[str]:
    return {one.content["custom_id"] for one in read_part(file) if isinstance(one, Found)}


def test_lines_are_read_with_their_places(tmp_path: Path):
    file = write(tmp_path / "part", "a", "b", "\ud800")
    content = file.read_bytes()
    found = list(read_part(file))
    assert [one.content["custom_id"] for one in found if isinstance(one, Found)] == ["a", "b", "\ud800"]
    assert b"".join(content[one.offset : one.offset + one.length] for one in found) == content
    assert [one.key for one in found if isinstance(one, Found)] == [key_of(name) for name in ("a", "b", "\ud800")]


def test_cut_at_every_byte_the_whole_lines_are_there_and_no_other(tmp_path: Path):
    whole = write(tmp_path / "part", "a", "b", "c").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        file = tmp_path / "cut"
        file.write_bytes(whole[:size])
        finished = Finished()
        finished.look([file])
        count = sum(end <= size for end in ends)
        assert [key_of(name) in finished for name in "abc"] == [place < count for place in range(3)], size
        finished.look([write_rest(file, whole)])
        assert len(finished) == 3, size


def write_rest(file: Path, whole: bytes) -> Path:
    """Its writer was alive."""
    file.write_bytes(whole)
    return file


@pytest.mark.parametrize("broken", [b"\0" * 20, b'{"custom_id": 3}', b"{}", b"[]", b'{"custom_id": "a"'])
def test_a_broken_line_costs_itself_alone(tmp_path: Path, broken: bytes):
    file = write(tmp_path / "part", "a", "b")
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + broken + b"\n" + second)
    assert ids_in(file) == {"a", "b"}
    (line,) = [one for one in read_part(file) if isinstance(one, Broken)]
    assert (line.offset, line.length, line.is_torn) == (len(first), len(broken) + 1, False)


def test_a_part_is_never_appended_to(tmp_path: Path):
    file = write(tmp_path / "part", "a")
    with pytest.raises(GptOssDistError, match="cannot be written: File exists"):
        PartWriter(file)


def check_until(writer: PartWriter, deadline: float) -> None:
    while time.monotonic() < deadline:
        writer.check()
        time.sleep(0.02)


@pytest.mark.parametrize("harm", ["the file", "the folder", "another file"])
def test_an_output_that_goes_away_is_told(tmp_path: Path, harm: str):
    folder = tmp_path / "parts"
    folder.mkdir()
    writer = PartWriter(folder / "part")
    writer.write({"custom_id": "a"})
    shutil.rmtree(folder) if harm == "the folder" else (folder / "part").unlink()
    if harm == "another file":
        (folder / "part").touch()
    deadline = time.monotonic() + 20
    with pytest.raises(GptOssDistError, match="gone"):
        check_until(writer, deadline)
    with pytest.raises(GptOssDistError, match="gone"):
        writer.write({"custom_id": "b"})
    writer.close()


FULL = """
import resource, sys
from pathlib import Path
from gptoss_dist.batch.part import PartWriter
from gptoss_dist.errors import GptOssDistError

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = PartWriter(Path(sys.argv[1]))
try:
    for number in range(100):
        writer.write({"custom_id": str(number), "text": "x" * 70})
except GptOssDistError as error:
    print(number, error)
writer.close()
"""


def test_a_full_disk_keeps_whole_lines_only(tmp_path: Path):
    file = tmp_path / "part"
    done = subprocess.run([sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True)
    count, _, said = done.stdout.partition(" ")
    assert "no room left" in said
    assert "start the same command again" in said
    assert file.stat().st_size <= 1000
    assert not [one for one in read_part(file) if isinstance(one, Broken)]
    assert ids_in(file) == {str(number) for number in range(int(count))}
    assert int(count) > 5


def test_what_the_thread_meets_is_raised_by_the_writer(tmp_path: Path):
    def fail() -> None:
        raise OSError(28, os.strerror(28))

    writer = PartWriter(tmp_path / "part", fail)
    deadline = time.monotonic() + 20
    with pytest.raises(GptOssDistError, match="no room left"):
        check_until(writer, deadline)
    writer.close()
