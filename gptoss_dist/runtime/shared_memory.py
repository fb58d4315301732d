"""Memory that all ranks of one machine map, found through a file that is gone once they have."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class _File:
    """What rank 0 made for all."""

    path: str
    token: bytes
    """Its last bytes: a file of this path that ends otherwise is another machine's or container's."""
    problem: str | None = None


def share(
    rank: int, size: int, broadcast: Callable[[Any], Any], all_gather: Callable[[Any], list[Any]]
) -> tuple[mmap.mmap | None, str | None]:
    """`size` bytes of zeros that all ranks map, or None and why, the same on every rank. Collective."""
    with _reserved(size) if rank == 0 else contextlib.nullcontext() as reserved:
        file: _File = broadcast(reserved)
        memory = _map(file, size)
        problem = file.problem or (None if memory else f"rank {rank} does not see {file.path}, which rank 0 made")
        # Once all have mapped it, the file is not needed, and goes with the block.
        problem = first_problem(all_gather(problem))
    if problem is not None and memory is not None:
        memory.close()
        memory = None
    return memory, problem


@contextlib.contextmanager
def _reserved(size: int) -> Iterator[_File]:
    """A file for the block; of a page that is promised and not there, whoever writes it would end by SIGBUS."""
    token = secrets.token_bytes(16)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="gptoss-", dir=_SHARED))
            os.posix_fallocate(file.fileno(), 0, size + len(token))
            os.pwrite(file.fileno(), token, size)
            made = _File(file.name, token)
        except OSError as error:
            problem = f"{_SHARED} gives no {size >> 10} KiB ({error.strerror}). Make room there (docker: --shm-size)."
            made = _File(str(_SHARED), token, problem)
        yield made


def _map(shared: _File, size: int) -> mmap.mmap | None:
    """The file's first `size` bytes, if this process sees that file."""
    with contextlib.suppress(OSError, ValueError):
        if shared.problem is None:
            with Path(shared.path).open("r+b") as file:
                if os.pread(file.fileno(), len(shared.token), size) == shared.token:
                    return mmap.mmap(file.fileno(), size)
    return None


def first_problem(problems: Iterable[str | None]) -> str | None:
    """The first that there is."""
    return next((one for one in problems if one is not None), None)
