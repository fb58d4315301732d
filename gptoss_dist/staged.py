"""A staged folder: what a run needs from outside, brought here by `gptoss prefetch`, for machines without a network.

    FOLDER/manifest.json                     every file with its size and SHA-256, and where it came from
    FOLDER/weights/OWNER/NAME/               a checkpoint
    FOLDER/kernels/OWNER/NAME/build/…        a kernel of the hub, built for one version of torch
    FOLDER/encodings/o200k_base.tiktoken     the harmony vocabulary

A run uses it by `cluster.staged=FOLDER`. No torch and no network here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from gptoss_dist.errors import StagedError

MANIFEST = "manifest.json"
_FORMAT = 1
_CHUNK = 1 << 22


class Kind(Enum):
    """What an item of a staged folder is; the value is the name of its folder."""

    weights = "weights"
    kernel = "kernels"
    vocabulary = "encodings"


@dataclass(frozen=True)
class StagedFile:
    """A file, its path counted from its item's folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Item:
    """Something that was staged whole."""

    kind: Kind
    name: str
    """OWNER/NAME on the hub; of the vocabulary, the name of its file."""
    asked: str
    """The revision asked for: a branch, a tag, or a commit."""
    revision: str
    """The commit that was fetched; of the vocabulary, its source."""
    files: tuple[StagedFile, ...]

    @property
    def folder(self) -> str:
        """Where it lies, counted from the staged folder."""
        return self.kind.value if self.kind is Kind.vocabulary else f"{self.kind.value}/{self.name}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Staged:
    """A staged folder as its manifest has it."""

    folder: Path
    items: tuple[Item, ...] = ()

    def find(self, kind: Kind, name: str) -> Item | None:
        """The item of this kind and name."""
        return next((item for item in self.items if (item.kind, item.name) == (kind, name)), None)

    def folder_of(self, item: Item) -> Path:
        """Where an item lies."""
        return self.folder / item.folder

    def weights(self, name: str, revision: str | None = None) -> Path:
        """The folder of a checkpoint that the hub calls `name`. StagedError if it, or this revision, is not here."""
        item = self.find(Kind.weights, name)
        if item is None:
            known = ", ".join(one.name for one in self.items if one.kind is Kind.weights) or "none"
            raise StagedError(
                f"{self.folder}: holds no weights of {name}; those it holds: {known}. Run where there is a network: "
                f"gptoss prefetch weights model.path={name} --out {self.folder}"
            )
        if revision not in (None, item.asked, item.revision):
            raise StagedError(
                f"{self.folder}: holds {name} at revision {item.revision}, and model.revision={revision} is asked "
                "for. Drop it, or prefetch that revision into a folder of its own."
            )
        return self.folder_of(item)

    def environment(self) -> dict[str, str]:
        """The variables by which openai-harmony, `kernels` and huggingface_hub find this folder and no network."""
        variables = {"HF_HUB_OFFLINE": "1"}
        kernels = [item for item in self.items if item.kind is Kind.kernel]
        if kernels:
            variables["LOCAL_KERNELS"] = ":".join(f"{item.name}={self.folder_of(item)}" for item in kernels)
        if any(item.kind is Kind.vocabulary for item in self.items):
            variables["TIKTOKEN_ENCODINGS_BASE"] = str(self.folder / Kind.vocabulary.value)
        return variables

    def problems(self, item: Item, hash_below: int | None) -> Iterator[str]:
        """What is wrong with an item's files: missing, of another size, of other bytes.

        Files of `hash_below` bytes and more are told by their size alone; None: every file is read whole.
        """
        for file in item.files:
            path = self.folder_of(item) / file.path
            try:
                size = path.stat().st_size
                if size != file.size:
                    yield f"{path}: {size} bytes, and {file.size} were staged"
                elif (hash_below is None or size < hash_below) and sha256_of(path) != file.sha256:
                    yield f"{path}: holds other bytes than were staged"
            except OSError as error:
                yield f"{path}: {error.strerror}"

    def with_item(self, item: Item) -> Staged:
        """The same folder with `item`, in the place of an older one of its kind and name; the manifest is written."""
        others = tuple(one for one in self.items if (one.kind, one.name) != (item.kind, item.name))
        staged = Staged(self.folder, (*others, item))
        _write(staged)
        return staged


def open_staged(folder: Path) -> Staged:
    """Read the manifest of a staged folder. Raises StagedError if there is none, or none that can be read."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise StagedError(f"{file}: format {content['format']}, and this version reads format {_FORMAT}.")
        return Staged(folder.resolve(), tuple(_item(entry) for entry in content["items"]))
    except FileNotFoundError:
        raise StagedError(
            f"{file}: no such file. A staged folder is made where there is a network: gptoss prefetch --out {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StagedError(f"{file}: cannot be read as a manifest ({error}). Run gptoss prefetch again.") from None


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _item(entry: Mapping[str, Any]) -> Item:
    files = tuple(StagedFile(str(one["path"]), int(one["size"]), str(one["sha256"])) for one in entry["files"])
    return Item(Kind(entry["kind"]), str(entry["name"]), str(entry["asked"]), str(entry["revision"]), files)


def _write(staged: Staged) -> None:
    """Under a temporary name, then renamed: a reader sees the old manifest or the new one."""
    entries = [{**asdict(item), "kind": item.kind.value} for item in staged.items]
    text = json.dumps({"format": _FORMAT, "items": entries}, indent=1) + "\n"
    target = staged.folder / MANIFEST
    temporary = target.with_name(f".{MANIFEST}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise StagedError(f"{target}: cannot be written: {error.strerror}.") from None
