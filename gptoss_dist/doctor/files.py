"""Are the files of the run here and whole: staged folder, vocabulary, checkpoint; and is there room to write?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from gptoss_dist.cache import cache_folder
from gptoss_dist.doctor.finding import Finding, check, error, ok, warning
from gptoss_dist.files import user_path
from gptoss_dist.harmony.vocab import find_vocabulary, is_offline
from gptoss_dist.model.checkpoint import open_checkpoint
from gptoss_dist.model.source import TINY
from gptoss_dist.model.tiny import tiny_folder
from gptoss_dist.schema.job.doctor import DoctorConf
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.schema.run import RunConf
from gptoss_dist.staged import Staged, open_staged

_READ_WHOLE = 64 << 20
"""Staged files below this are compared by their bytes even if job.hash is false."""
_SAMPLE = 256 << 20
_ENOUGH_BYTES = 1 << 30


def file_findings(run: RunConf) -> Iterator[Finding]:
    """Everything about files, for one machine."""
    staged = open_staged(user_path(run.cluster.staged, "cluster.staged")) if run.cluster.staged is not None else None
    if staged is not None:
        assert isinstance(run.job, DoctorConf)
        yield from staged_findings(staged, None if run.job.hash else _READ_WHOLE)
    yield from check("vocabulary", vocabulary_finding)
    yield from check("weights", lambda: weights_findings(run.model, staged))
    yield from room_findings()


def staged_findings(staged: Staged, hash_below: int | None) -> Iterator[Finding]:
    """One line for each item, or for each of its files that is not as it was staged."""
    way_out = f"run gptoss prefetch with --out {staged.folder} again, where there is a network"
    for item in staged.items:
        problems = list(staged.problems(item, hash_below))
        for problem in problems:
            yield error("staged", problem, way_out)
        if not problems:
            large = hash_below is not None and any(file.size >= hash_below for file in item.files)
            how = "large ones by size alone; --hash reads them" if large else "by SHA-256"
            yield ok("staged", f"{item.folder}: {len(item.files)} files, {item.size / 1e9:.2f} GB, {how}")


def vocabulary_finding() -> Iterator[Finding]:
    """Whether the harmony vocabulary is on this machine. Raises VocabularyError for a file of other bytes."""
    found = find_vocabulary()
    way_out = "gptoss prefetch vocab, or TIKTOKEN_ENCODINGS_BASE=DIR"
    if found is not None:
        yield ok("vocabulary", f"{found.path}, by SHA-256")
    elif is_offline():
        yield error("vocabulary", "it is not on this machine, and nothing may be fetched", way_out)
    else:
        yield warning("vocabulary", "it is not on this machine: the first run fetches it", way_out)


def weights_findings(model: ModelConf, staged: Staged | None) -> Iterator[Finding]:
    """Whether the checkpoint is here and its files belong together. Raises CheckpointError and StagedError."""
    if model.path == TINY:
        trained = tiny_folder().exists()
        yield ok("weights", str(tiny_folder()) if trained else "model=tiny is trained by the first run, in a minute")
        return
    folder = _folder(model, staged)
    if folder is None and not _may_be_on_the_hub(model.path):
        yield error("weights", f"{model.path}: no such folder, and no name on the hub", "model.path=DIR or OWNER/NAME")
        return
    if folder is None:
        text = f"{model.path} is not on this machine"
        way_out = f"gptoss prefetch weights model.path={model.path} --out DIR, then cluster.staged=DIR"
        yield (
            error("weights", f"{text}, and nothing may be fetched", way_out)
            if is_offline()
            else warning("weights", f"{text}: the first run fetches it, every machine for itself", way_out)
        )
        return
    checkpoint = open_checkpoint(folder)
    kept = "MXFP4" if checkpoint.packed else checkpoint.dtype
    files = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    yield ok("weights", f"{folder}: {len(files)} files, {size / 1e9:.2f} GB, {kept} experts, none missing or torn")
    yield read_speed(max(files, key=lambda file: file.stat().st_size))


def read_speed(file: Path) -> Finding:
    """How fast the beginning of a file is read, which may be out of the page cache."""
    start, size = time.perf_counter(), 0
    with file.open("rb", buffering=0) as opened:
        while size < _SAMPLE and (chunk := opened.read(1 << 24)):
            size += len(chunk)
    speed = size / max(time.perf_counter() - start, 1e-9)
    return ok("weights", f"{size / 1e6:.0f} MB of them read at {speed / 1e9:.2f} GB/s (page cache included)")


def room_findings() -> Iterator[Finding]:
    """Free space where this program and its packages write."""
    for about, folder in (("cache", cache_folder()), ("temporary files", Path(tempfile.gettempdir()))):
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(existing).free
        variable = "GPTOSS_CACHE" if about == "cache" else "TMPDIR"
        if not os.access(existing, os.W_OK):
            yield error("disk", f"{about}: {existing} cannot be written", f"set {variable} to a folder that can")
        elif free < _ENOUGH_BYTES:
            text = f"{about}: {free / 1e9:.2f} GB free in {existing}"
            yield warning("disk", text, f"make room, or set {variable} to another disk")
        else:
            yield ok("disk", f"{about}: {free / 1e9:.1f} GB free in {existing}")


def _may_be_on_the_hub(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _folder(model: ModelConf, staged: Staged | None) -> Path | None:
    """Where the weights lie: a folder of this machine, the staged folder, or the hub's cache."""
    if Path(model.path).is_dir():
        return Path(model.path)
    if staged is not None:
        return staged.weights(model.path, model.revision)
    if not _may_be_on_the_hub(model.path):
        return None
    cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    return Path(cached).parent if isinstance(cached, str) else None
