"""A repository of the hub: what files it has at one commit, and those files brought here and verified.

huggingface_hub downloads and resumes; it compares sizes alone, so every file is read once more here. The hub gives the
SHA-256 of large files, and of small ones git's own object name, which is a SHA-1 over a header and the bytes.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from gptoss_dist.errors import StagedError
from gptoss_dist.staged import StagedFile, sha256_of

RepositoryType = Literal["model", "kernel"]
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""The base of all errors of the HTTP library that huggingface_hub uses: httpx before its version 2, httpx2 since."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it."""

    path: str
    size: int
    sha256: str | None
    """Of large files alone."""
    git_name: str
    """git's object name of a small file."""


@dataclass(frozen=True)
class Repository:
    """All files of a repository at one commit."""

    name: str
    kind: RepositoryType
    asked: str
    commit: str
    files: tuple[RemoteFile, ...]


def look_up(name: str, kind: RepositoryType, revision: str | None) -> Repository:
    """Ask the hub for the files of OWNER/NAME at a branch, tag or commit (None: main).

    Raises StagedError where the hub does not answer, or has no such repository or revision, or wants a key.
    """
    asked = revision or "main"
    with _hub_errors(name):
        api = HfApi()
        commit = api.repo_info(name, repo_type=kind, revision=asked).sha
        listed = list(api.list_repo_tree(name, recursive=True, revision=commit, repo_type=kind))
    files = tuple(
        RemoteFile(one.path, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in listed
        if isinstance(one, RepoFile)
    )
    return Repository(name, kind, asked, str(commit), files)


def bring(repository: Repository, files: Sequence[RemoteFile], folder: Path, workers: int) -> tuple[StagedFile, ...]:
    """Download `files` into `folder`, in the hub's layout, and verify each; what is there and right is kept.

    A file that is not what the hub says is removed, so that the next run fetches it again. Raises StagedError for such
    a file, for a full disk, and for what the hub does not give.
    """
    present = [one for one in files if _size(folder / one.path) == one.size]
    needed = sum(one.size for one in files) - sum(one.size for one in present)
    _check_space(folder, needed)
    with _hub_errors(repository.name):
        snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=repository.commit,
            local_dir=folder,
            allow_patterns=[glob.escape(one.path) for one in files],
            max_workers=workers,
        )
    with ThreadPoolExecutor(workers) as pool:  # hashing lets other threads run
        return tuple(pool.map(lambda one: _verified(one, folder), files))


def _verified(file: RemoteFile, folder: Path) -> StagedFile:
    path = folder / file.path
    try:
        size, sha256 = path.stat().st_size, sha256_of(path)
        right = sha256 == file.sha256 if file.sha256 else _git_name(path) == file.git_name
    except OSError as error:
        raise StagedError(f"{path}: {error.strerror}, though it was fetched. Run gptoss prefetch again.") from None
    if not right or size != file.size:
        path.unlink()
        raise StagedError(
            f"{path}: the hub says {file.size} bytes of {file.sha256 or file.git_name}, and {size} other ones came. "
            "The file is removed; run gptoss prefetch again to fetch it anew."
        )
    return StagedFile(file.path, size, sha256)


def _git_name(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _check_space(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StagedError(f"{folder}: cannot be made: {error.strerror}. Take another job.out.") from None
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StagedError(
            f"{folder}: {needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free. Make room, or take "
            "another job.out."
        )


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What can go wrong between here and the hub, as one line that says so."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise StagedError(
            f"{name}: HF_HUB_OFFLINE is set, so nothing is fetched. Unset it, or fetch where there is a network."
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, _HTTP_ERROR, OSError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise StagedError(
            f"{name}: the hub did not give it: {reason}. What has come is kept, and the same command goes on. A closed "
            "repository needs HF_TOKEN in the environment; another address of the hub is HF_ENDPOINT."
        ) from None
