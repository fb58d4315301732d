"""`gptoss prefetch WHAT`: bring what a run needs from outside onto this machine, verified, into one staged folder."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from gptoss_dist.errors import ConfigError, StagedError
from gptoss_dist.files import user_path
from gptoss_dist.harmony.vocab import VOCABULARY_FILE, VOCABULARY_SHA256, prefetch_vocabulary
from gptoss_dist.jobs.table import Result
from gptoss_dist.log import get_logger
from gptoss_dist.prefetch.kernel_builds import build_of, fitting_builds
from gptoss_dist.schema.job.prefetch import PrefetchConf, Staging
from gptoss_dist.schema.run import RunConf
from gptoss_dist.staged import MANIFEST, Item, Kind, Staged, StagedFile, open_staged

logger = get_logger(__name__)

KERNELS = ("kernels-community/gpt-oss-triton-kernels", "kernels-community/vllm-flash-attn3")
"""What `kernels=hub` takes."""
_KERNEL_REVISION = "v1"
"""transformers asks for version 1 of each, which the hub keeps as this branch."""
_CHECKPOINT_FILES = ("*.json", "*.jinja", "*.txt", "model*.safetensors")
"""In the repository's root; its folders hold the same weights in other layouts."""


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    job = run.job
    assert isinstance(job, PrefetchConf)
    if job.out is None:
        if job.what is not Staging.vocab:
            raise ConfigError(
                f"gptoss prefetch {job.what.value}: job.out is missing, the folder to fill: --out DIR. "
                "gptoss prefetch vocab alone needs none."
            )
        return Result(prefetch_vocab())
    return _fill(run, job, user_path(job.out, "job.out"))


def prefetch_vocab() -> dict[str, Any]:
    """The harmony vocabulary in this user's cache: where it lies, its source, its checksum, what was tried before.

    Raises VocabularyError when no source gave it.
    """
    found = prefetch_vocabulary()
    return {"vocab": str(found.path), "source": found.source, "sha256": VOCABULARY_SHA256, "tried": list(found.tried)}


def _check_folder(folder: Path) -> None:
    """LOCAL_KERNELS, by which `kernels` finds a staged folder, separates its entries by colons."""
    if ":" in str(folder.resolve()):
        raise ConfigError(f"job.out={folder}: a path with a colon cannot be told to the package `kernels`. Rename it.")


def _fill(run: RunConf, job: PrefetchConf, folder: Path) -> Result:
    """All that was asked for, one thing after the other: what is done is in the manifest before the next begins."""
    steps: dict[Staging, Callable[[Staged], Staged]] = {
        Staging.vocab: _vocabulary,
        Staging.kernels: lambda staged: _kernels(staged, job),
        Staging.weights: lambda staged: _weights(staged, run, job),
    }
    chosen = list(steps) if job.what is Staging.all else [job.what]
    _check_folder(folder)
    if Staging.weights in chosen:
        _check_model(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError as error:
        raise StagedError(f"job.out={job.out}: cannot be written: {error.strerror}. Take another folder.") from None
    with lock:
        staged = open_staged(folder) if (folder / MANIFEST).exists() else Staged(folder.resolve())
        for what in chosen:
            staged = steps[what](staged)
    lines = [f"{one.folder}: {len(one.files)} files, {one.size / 1e6:.1f} MB" for one in staged.items]
    items = [
        {"kind": one.kind.value, "name": one.name, "revision": one.revision, "files": len(one.files), "bytes": one.size}
        for one in staged.items
    ]
    text = "\n".join([f"staged in {staged.folder}, every file verified:", *lines, f"cluster.staged={staged.folder}"])
    return Result({"staged": str(staged.folder), "items": items}, text)


def _check_model(run: RunConf) -> None:
    path = run.model.path
    if path == "tiny":
        raise ConfigError(
            "model=tiny is trained on the machine itself (gptoss tiny) and not fetched. Say model=gpt_oss_120b or "
            "model=gpt_oss_20b, or what else is wanted: gptoss prefetch kernels, gptoss prefetch vocab."
        )
    if Path(path).is_dir():
        raise ConfigError(f"model.path={path}: a folder on this machine already; there is nothing to fetch.")


def _weights(staged: Staged, run: RunConf, job: PrefetchConf) -> Staged:
    from gptoss_dist.prefetch.repository import bring, look_up

    found = look_up(run.model.path, "model", run.model.revision)
    wanted = [one for one in found.files if "/" not in one.path and _is_wanted(one.path)]
    if not any(one.path.endswith(".safetensors") for one in wanted):
        raise StagedError(f"{found.name} at {found.asked}: holds no model*.safetensors. Is it a gpt-oss checkpoint?")
    return _bring(staged, Kind.weights, found, bring, wanted, job)


def _kernels(staged: Staged, job: PrefetchConf) -> Staged:
    from gptoss_dist.prefetch.repository import bring, look_up

    torch_version, machine = job.torch or metadata.version("torch"), platform.machine()
    for name in KERNELS:
        found = look_up(name, "kernel", _KERNEL_REVISION)
        builds = {build for one in found.files if (build := build_of(one.path))}
        fitting = fitting_builds(builds, torch_version, machine)
        if not fitting:
            raise StagedError(
                f"{name}: no build for torch {torch_version} on {machine}. There are: {', '.join(sorted(builds))}. "
                "Another version of torch: job.torch=2.11. Without them: gptoss prefetch weights and gptoss prefetch "
                "vocab, and kernels=auto."
            )
        wanted = [one for one in found.files if build_of(one.path) in fitting]
        staged = _bring(staged, Kind.kernel, found, bring, wanted, job)
    return staged


def _bring(
    staged: Staged, kind: Kind, found: Any, bring: Callable[..., tuple[StagedFile, ...]], wanted: Any, job: PrefetchConf
) -> Staged:
    item = Item(kind, found.name, found.asked, found.commit, ())
    logger.info("%s at %s: %d files, %.2f GB", found.name, found.commit, len(wanted), sum(f.size for f in wanted) / 1e9)
    files = bring(found, wanted, staged.folder_of(item), job.workers)
    return staged.with_item(Item(kind, found.name, found.asked, found.commit, files))


def _vocabulary(staged: Staged) -> Staged:
    found = prefetch_vocabulary()
    item = Item(Kind.vocabulary, VOCABULARY_FILE, "", found.source, ())
    target = staged.folder_of(item) / VOCABULARY_FILE
    try:
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or not target.samefile(found.path):
            shutil.copyfile(found.path, target)
        size = target.stat().st_size
    except OSError as error:
        raise StagedError(f"{target}: cannot be written: {error.strerror}.") from None
    file = StagedFile(VOCABULARY_FILE, size, VOCABULARY_SHA256)
    return staged.with_item(Item(item.kind, item.name, item.asked, item.revision, (file,)))


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _CHECKPOINT_FILES)
