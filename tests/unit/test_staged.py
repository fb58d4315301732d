from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gptoss_dist.config import compose_run, export_staged
from gptoss_dist.errors import StagedError
from gptoss_dist.staged import MANIFEST, Item, Kind, Staged, StagedFile, open_staged

NAME = "openai/gpt-oss-20b"


def staged_item(folder: Path, kind: Kind, name: str, **files: bytes) -> Staged:
    """A folder with one more item, its files `a_json=…` as `a.json`."""
    given = open_staged(folder) if (folder / MANIFEST).exists() else Staged(folder.resolve())
    item = Item(kind, name, "main", "abc", ())
    listed = []
    for key, content in files.items():
        path = given.folder_of(item) / key.replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        listed.append(StagedFile(path.name, len(content), hashlib.sha256(content).hexdigest()))
    return given.with_item(Item(kind, name, "main", "abc", tuple(listed)))


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    staged_item(tmp_path, Kind.kernel, "owner/one", build_py=b"1")
    staged_item(tmp_path, Kind.kernel, "owner/two", build_py=b"2")
    staged_item(tmp_path, Kind.vocabulary, "o200k_base.tiktoken", o200k_tiktoken=b"v")
    return staged_item(tmp_path, Kind.weights, NAME, config_json=b"{}", model_safetensors=b"w" * 100)


def test_the_manifest_is_read_as_it_was_written(staged: Staged):
    assert open_staged(staged.folder) == staged
    assert [item.size for item in staged.items] == [1, 1, 1, 102]


def test_an_item_takes_the_place_of_its_older_self(staged: Staged):
    newer = staged_item(staged.folder, Kind.weights, NAME, config_json=b"[]")
    assert len(newer.items) == 4
    assert newer.find(Kind.weights, NAME).size == 2


def test_packages_are_told_by_variables_where_things_lie(staged: Staged):
    folder = staged.folder
    assert staged.environment() == {
        "HF_HUB_OFFLINE": "1",
        "LOCAL_KERNELS": f"owner/one={folder}/kernels/owner/one:owner/two={folder}/kernels/owner/two",
        "TIKTOKEN_ENCODINGS_BASE": f"{folder}/encodings",
    }


def test_only_what_is_staged_is_told(tmp_path: Path):
    assert staged_item(tmp_path, Kind.weights, NAME, a_json=b"").environment() == {"HF_HUB_OFFLINE": "1"}


def test_whole_files_are_no_problem(staged: Staged):
    assert [list(staged.problems(item, None)) for item in staged.items] == [[], [], [], []]


def test_what_is_missing_torn_or_changed_is_named(staged: Staged):
    item = staged.find(Kind.weights, NAME)
    folder = staged.folder_of(item)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"w" * 99 + b"x")
    assert list(staged.problems(item, None)) == [
        f"{folder}/config.json: No such file or directory",
        f"{folder}/model.safetensors: holds other bytes than were staged",
    ]
    assert len(list(staged.problems(item, hash_below=100))) == 1  # told by its size alone
    (folder / "model.safetensors").write_bytes(b"w" * 99)
    assert list(staged.problems(item, 0))[1] == f"{folder}/model.safetensors: 99 bytes, and 100 were staged"


def test_weights_are_found_by_their_name_on_the_hub(staged: Staged):
    assert staged.weights(NAME) == staged.folder / "weights" / NAME
    assert staged.weights(NAME, "main") == staged.weights(NAME, "abc")


def test_weights_that_are_not_there_are_named_with_the_way_to_them(staged: Staged):
    with pytest.raises(StagedError, match=rf"no weights of a/b; those it holds: {NAME}\. .*model\.path=a/b --out"):
        staged.weights("a/b")
    with pytest.raises(StagedError, match=r"at revision abc, and model\.revision=dev is asked for"):
        staged.weights(NAME, "dev")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as a manifest"),
        ("[]", "cannot be read as a manifest"),
        ('{"format": 2, "items": []}', "format 2, and this version reads format 1"),
        ('{"format": 1, "items": [{}]}', "cannot be read as a manifest"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path: Path, content: str, said: str):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(StagedError, match=said):
        open_staged(tmp_path)


def test_a_folder_that_was_not_staged_says_how_to(tmp_path: Path):
    with pytest.raises(StagedError, match=f"gptoss prefetch --out {tmp_path}"):
        open_staged(tmp_path)


def test_a_manifest_that_cannot_be_written_is_named(staged: Staged):
    target = staged.folder / f".{MANIFEST}.{os.getpid()}"
    target.mkdir()
    with pytest.raises(StagedError, match=r"manifest\.json: cannot be written"):
        staged.with_item(staged.items[0])


def test_a_run_takes_its_weights_from_there(staged: Staged):
    run = compose_run(["job=generate", "model=gpt_oss_20b", f"cluster.staged={staged.folder}", "prompt=x"])
    assert run.model.path == str(staged.folder / "weights" / NAME)
    environ: dict[str, str] = {}
    export_staged(run, environ)
    assert environ == staged.environment()


@pytest.mark.parametrize("word", ["model=tiny", "model.path=."])
def test_what_is_on_the_machine_itself_stays(staged: Staged, word: str):
    run = compose_run(["job=generate", word, f"cluster.staged={staged.folder}", "prompt=x"])
    assert run.model.path == word.partition("=")[2]


@pytest.mark.parametrize("job", ["prefetch", "synth", "tiny"])
def test_a_job_that_loads_nothing_needs_no_weights_there(tmp_path: Path, job: str):
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 1, "items": []}))
    run = compose_run([f"job={job}", "model=gpt_oss_120b", f"cluster.staged={tmp_path}"])
    assert run.model.path == "openai/gpt-oss-120b"


def test_without_it_nothing_is_set():
    environ: dict[str, str] = {}
    export_staged(compose_run(["job=generate", "model=tiny", "prompt=x"]), environ)
    assert environ == {}
