from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_dist.errors import CheckpointError
from gptoss_dist.model import source, tiny
from gptoss_dist.schema.model import ModelConf


def test_a_folder_is_taken_as_it_is(make_checkpoint):
    folder = make_checkpoint()
    assert source.checkpoint_folder(ModelConf("mine", str(folder))) == folder


def test_what_is_nowhere_is_an_error():
    with pytest.raises(CheckpointError, match=r"model\.path=/nowhere: no such folder"):
        source.checkpoint_folder(ModelConf("mine", "/nowhere"))


def test_tiny_is_the_toy_of_this_machine(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "cache"))
    toy = tiny.tiny_folder()
    toy.mkdir(parents=True)
    assert toy.is_relative_to(tmp_path)
    assert source.checkpoint_folder(ModelConf("tiny", "tiny")) == toy
