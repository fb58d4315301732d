from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptoss_dist.cache import cache_folder
from gptoss_dist.cli import main
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path

LOST = "~nobody-has-this-name/x"


def test_a_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_path("~/x", "job.out") == Path("/home/ada/x")
    assert user_path("a/~/x", "job.out") == Path("a/~/x")


def test_a_home_folder_that_nobody_has_is_named_with_its_option(monkeypatch):
    with pytest.raises(ConfigError, match=rf"^job\.out={LOST}: no home folder is known for ~nobody-has-this-name\."):
        user_path(LOST, "job.out")
    monkeypatch.setenv("GPTOSS_CACHE", LOST)
    with pytest.raises(ConfigError, match=rf"^GPTOSS_CACHE={LOST}: "):
        cache_folder()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--conf", ["plan", f"--conf={LOST}"]),
        ("model.path", ["plan", f"model.path={LOST}"]),
        ("cluster.staged", ["plan", f"cluster.staged={LOST}"]),
        ("cluster.staged", ["doctor", f"cluster.staged={LOST}"]),
        ("job.file", ["generate", f"job.file={LOST}"]),
        ("job.messages", ["generate", f"job.messages={LOST}"]),
        ("job.tools", ["generate", "prompt=Hi", f"job.tools={LOST}"]),
        ("job.tools", ["chat", f"job.tools={LOST}"]),
        ("job.input", ["batch", f"job.input='{LOST}'", "job.output=OUT"]),
        ("job.output", ["batch", "job.input=IN", f"job.output={LOST}"]),
        ("job.functions", ["batch", "job.input=IN", "job.output=OUT", f"job.functions={LOST}.py"]),
        ("job.plot", ["bench", f"job.plot={LOST}.png"]),
        ("job.plot", ["plan", "model=gpt_oss_20b", f"job.plot={LOST}.svg"]),
        ("job.out", ["synth", f"job.out={LOST}"]),
        ("job.out", ["prefetch", f"job.out={LOST}"]),
        ("engine.script", ["serve", "engine=scripted", f"engine.script={LOST}"]),
    ],
)
def test_every_option_that_takes_a_path_says_so_in_one_line(
    option: str, words: list[str], tmp_path, capsys, monkeypatch
):
    for name in list(os.environ):
        if name.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "SLURM_", "TORCHELASTIC_", "MASTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    places = {"job.input=IN": f"job.input={tmp_path}/in.jsonl", "job.output=OUT": f"job.output={tmp_path}/out.jsonl"}
    try:
        status = main([places.get(word, word) for word in words])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.startswith(f"error: {option}={LOST}")
    assert "no home folder is known for ~nobody-has-this-name. Write the whole path." in said
    assert said.count("\n") == 1
