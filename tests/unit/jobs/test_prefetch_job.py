"""`gptoss prefetch` against a hub on loopback, by the real huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, hub_server

from gptoss_dist.jobs.prefetch import KERNELS
from gptoss_dist.staged import Kind, open_staged

NAME = "openai/gpt-oss-20b"
BUILD = "build/torch211-cxx11-cu130-x86_64-linux"
LARGE = bytes(range(256)) * 1000
WEIGHTS = {
    "config.json": b"{}",
    "model-00000-of-00001.safetensors": LARGE,
    "original/model.safetensors": LARGE,
    "README.md": b"read me",
}
KERNEL = {
    f"{BUILD}/__init__.py": b"version = 1",
    f"{BUILD}/kernel.so": LARGE[:5000],
    "build/torch212-cxx11-cu130-x86_64-linux/kernel.so": LARGE[:6000],
    "README.md": b"read me",
}
SHARD = "model-00000-of-00001.safetensors"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    kernels = {("kernels", name): dict(KERNEL) for name in KERNELS}
    with hub_server({("models", NAME): dict(WEIGHTS), **kernels}) as server:
        yield server


def test_all_that_a_model_needs_comes_into_one_folder(hub: HubServer, tmp_path: Path):
    words = ("all", "model=gpt_oss_20b", f"--out={tmp_path}", "--torch=2.11", "--json")
    done = hub.prefetch(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(path for path, _ in hub.served) == sorted(
        ["config.json", SHARD, *[f"{BUILD}/__init__.py", f"{BUILD}/kernel.so"] * 2]
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert [(one["kind"], one["name"], one["files"]) for one in said["items"]] == [
        ("encodings", "o200k_base.tiktoken", 1),
        *(("kernels", name, 2) for name in KERNELS),
        ("weights", NAME, 2),
    ]
    staged = open_staged(tmp_path)
    assert {item.revision for item in staged.items[1:]} == {COMMIT}
    assert [problem for item in staged.items for problem in staged.problems(item, None)] == []
    assert (staged.weights(NAME) / SHARD).read_bytes() == LARGE

    hub.served.clear()
    assert hub.prefetch(*words).returncode == 0
    assert hub.served == []  # nothing is fetched twice


def test_a_download_that_breaks_off_goes_on(hub: HubServer, tmp_path: Path):
    hub.break_off[SHARD] = 1000
    done = hub.prefetch("weights", "model=gpt_oss_20b", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (open_staged(tmp_path).weights(NAME) / SHARD).read_bytes() == LARGE


@pytest.mark.parametrize(("path", "kind"), [(SHARD, "large"), ("config.json", "small")])
def test_other_bytes_than_the_hub_lists_are_removed_and_fetched_anew(hub: HubServer, tmp_path: Path, path, kind):
    hub.spoiled[path] = bytes(len(WEIGHTS[path]))
    words = ("weights", "model=gpt_oss_20b", f"--out={tmp_path}")
    done = hub.prefetch(*words)
    file = tmp_path / "weights" / NAME / path
    assert done.returncode == 1
    assert f"error: {file}: the hub says {len(WEIGHTS[path])} bytes of" in done.stderr
    assert not file.exists()
    assert not (tmp_path / "manifest.json").exists()
    hub.spoiled.clear()
    assert hub.prefetch(*words).returncode == 0
    assert file.read_bytes() == WEIGHTS[path]


def test_a_file_that_was_changed_on_disk_is_found(hub: HubServer, tmp_path: Path):
    words = ("weights", "model=gpt_oss_20b", f"--out={tmp_path}")
    assert hub.prefetch(*words).returncode == 0
    file = tmp_path / "weights" / NAME / SHARD
    file.write_bytes(LARGE[:-1] + b"?")
    assert f"error: {file}: the hub says" in hub.prefetch(*words).stderr
    assert hub.prefetch(*words).returncode == 0
    assert file.read_bytes() == LARGE


def test_what_was_done_before_an_error_is_in_the_manifest(hub: HubServer, tmp_path: Path):
    del hub.repositories["models", NAME]
    done = hub.prefetch("all", "model=gpt_oss_20b", f"--out={tmp_path}", "--torch=2.11")
    assert done.returncode == 1
    assert f"error: {NAME}: the hub did not give it: 404" in done.stderr
    assert {item.kind for item in open_staged(tmp_path).items} == {Kind.vocabulary, Kind.kernel}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("weights", "model=gpt_oss_20b", "model.revision=dev"), 1, "Revision Not Found"),
        (("kernels", "--torch=2.5"), 1, "no build for torch 2.5 on x86_64. There are: torch211-cxx11"),
        (("weights", "model=tiny"), 2, "model=tiny is trained on the machine itself"),
        (("weights", "model.path=."), 2, "a folder on this machine already"),
        (("weights", "model.path=a/b/c"), 1, "a/b/c: the hub did not give it"),
        (("wights",), 2, "job.what=wights"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(hub: HubServer, tmp_path: Path, words, status, said):
    done = hub.prefetch(*words, f"--out={tmp_path}")
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_folder_it_is_asked_for(hub: HubServer):
    done = hub.prefetch("model=gpt_oss_20b")
    assert (done.returncode, done.stderr.startswith("error: gptoss prefetch all: job.out is missing")) == (2, True)


def test_offline_nothing_is_tried(hub: HubServer, tmp_path: Path):
    done = hub.prefetch("weights", "model=gpt_oss_20b", f"--out={tmp_path}", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_a_hub_that_is_not_there_is_said(tmp_path: Path, hub: HubServer):
    done = hub.prefetch("weights", "model=gpt_oss_20b", f"--out={tmp_path}", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert f"error: {NAME}: the hub did not give it:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_would_be_taken_apart_is_refused(hub: HubServer, tmp_path: Path):
    done = hub.prefetch("vocab", f"--out={tmp_path}/a:b")
    assert (done.returncode, "a path with a colon" in done.stderr) == (2, True)


def test_a_folder_that_cannot_be_written_is_said(hub: HubServer, tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = hub.prefetch("vocab", f"--out={tmp_path / 'file'}")
    assert done.returncode == 1
    assert f"error: job.out={tmp_path / 'file'}: cannot be written" in done.stderr
