from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.doctor.files import file_findings, read_speed, room_findings, vocabulary_finding, weights_findings
from gptoss_dist.doctor.finding import Finding, Level, check
from gptoss_dist.harmony.vocab import VOCABULARY_FILE
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.staged import MANIFEST, Item, Kind, Staged, StagedFile, sha256_of

NAME = "openai/gpt-oss-20b"


def stage(folder: Path, checkpoint: Path) -> Staged:
    """A staged folder that holds a checkpoint under a name of the hub."""
    item = Item(Kind.weights, NAME, "main", "abc", ())
    target = folder / item.folder
    target.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    files = tuple(StagedFile(one.name, one.stat().st_size, sha256_of(one)) for one in sorted(target.iterdir()))
    return Staged(folder.resolve()).with_item(Item(Kind.weights, NAME, "main", "abc", files))


def of(found: list[Finding], about: str) -> list[Finding]:
    return [one for one in found if one.about == about]


def test_a_staged_folder_is_looked_through(tmp_path: Path, make_checkpoint):
    staged = stage(tmp_path, make_checkpoint())
    run = compose_run(["job=doctor", "model=gpt_oss_20b", f"cluster.staged={tmp_path}"])
    found = list(file_findings(run))
    (line,) = of(found, "staged")
    assert line.text == f"weights/{NAME}: {len(staged.items[0].files)} files, 0.00 GB, by SHA-256"
    assert of(found, "weights")[0].text.startswith(f"{staged.weights(NAME)}: ")
    assert {one.level for one in found} == {Level.ok}


@pytest.mark.parametrize("hash_all", [False, True])
def test_a_large_file_of_other_bytes_is_found_when_asked_for(tmp_path: Path, make_checkpoint, monkeypatch, hash_all):
    staged = stage(tmp_path, make_checkpoint())
    monkeypatch.setattr("gptoss_dist.doctor.files._READ_WHOLE", 1000)
    shard = max(staged.weights(NAME).iterdir(), key=lambda file: file.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    words = ["job=doctor", "model=gpt_oss_20b", f"cluster.staged={tmp_path}", f"job.hash={str(hash_all).lower()}"]
    (line,) = of(list(file_findings(compose_run(words))), "staged")
    if hash_all:
        assert (line.level, line.text) == (Level.error, f"{shard}: holds other bytes than were staged")
        assert f"gptoss prefetch with --out {tmp_path}" in line.way_out
    else:
        assert (line.level, line.text.endswith("large ones by size alone; --hash reads them")) == (Level.ok, True)


def test_weights_that_were_not_staged_are_an_error(tmp_path: Path):
    (tmp_path / MANIFEST).write_text('{"format": 1, "items": []}')
    run = compose_run(["job=doctor", "model=gpt_oss_120b", f"cluster.staged={tmp_path}"])
    (line,) = of(list(file_findings(run)), "weights")
    assert line.level is Level.error
    assert "holds no weights of openai/gpt-oss-120b" in line.text


def test_a_torn_shard_is_an_error_that_names_it(tmp_path: Path, make_checkpoint):
    staged = stage(tmp_path, make_checkpoint())
    shard = max(staged.weights(NAME).iterdir(), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-10])
    (line,) = check("weights", lambda: weights_findings(ModelConf("mine", str(shard.parent)), None))
    assert line.level is Level.error
    assert line.text.startswith(f"{shard}: torn")


@pytest.mark.parametrize(
    ("path", "offline", "level", "text"),
    [
        ("owner/name", "0", Level.warning, "owner/name is not on this machine: the first run fetches it"),
        ("owner/name", "1", Level.error, "owner/name is not on this machine, and nothing may be fetched"),
        ("/no/where", "0", Level.error, "/no/where: no such folder, and no name on the hub"),
        ("no/where/at/all", "0", Level.error, "no/where/at/all: no such folder"),
    ],
)
def test_weights_that_are_not_here(monkeypatch, path, offline, level, text):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    (line,) = weights_findings(ModelConf("mine", path), None)
    assert line.level is level
    assert line.text.startswith(text)
    assert line.way_out


def test_the_vocabulary_is_verified(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    (tmp_path / VOCABULARY_FILE).write_text("another")
    (line,) = check("vocabulary", vocabulary_finding)
    assert (line.level, "is not the harmony vocabulary" in line.text) == (Level.error, True)


@pytest.mark.parametrize(("offline", "level"), [("0", Level.warning), ("1", Level.error)])
def test_a_vocabulary_that_is_not_here(tmp_path: Path, monkeypatch, offline, level):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path))
    (line,) = vocabulary_finding()
    assert line.level is level
    assert "gptoss prefetch vocab" in line.way_out


def test_room_is_told_for_the_cache_and_temporary_files(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "not" / "there" / "yet"))
    assert [one.text.split(":")[0] for one in room_findings()] == ["cache", "temporary files"]
    monkeypatch.setattr("gptoss_dist.doctor.files._ENOUGH_BYTES", 1 << 60)
    assert [(one.level, "GPTOSS_CACHE" in one.way_out) for one in room_findings()] == [
        (Level.warning, True),
        (Level.warning, False),
    ]


def test_speed_is_told_of_what_was_read(tmp_path: Path):
    file = tmp_path / "shard"
    file.write_bytes(bytes(3_000_000))
    assert read_speed(file).text.startswith("3 MB of them read at ")
