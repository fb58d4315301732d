"""Who answers which records, where several processes (the tasks of a SLURM array, or any) share one input.

The records are cut into shares of `size`. Everything lies in the folder FILE.parts, which all processes see:

    batch.json          what is shared: digests of input and configuration, records, size of a share
    share-12.claim-0    made with O_EXCL by the process that answers share 12; holds the process' name
    share-12.claim-1    made likewise by the one that took it over: of several claims the highest counts
    share-12.done       every record of it has its line on disk
    part-NAME.jsonl     the lines of one process
    alive-NAME          a number that grows while the process lives

Guarantees: creating a file with O_EXCL is atomic on local disks and on NFS from version 3; neither locks nor
other machines' clocks are relied on. A share is taken over from a process that is known to be dead (same host, no
such process; or an earlier process of the same name, as the same task of an array or the same job after a requeue),
or whose number has not grown for `stale_s` of this process' own time.
Limits: a process that is only frozen that long is taken for dead; when it wakes, some records are answered twice, and
the merge keeps the first of them. Two processes that are given the same name work on each other's shares, likewise.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptoss_dist.batch.part import cannot_write
from gptoss_dist.errors import ConfigError

_CLAIM = re.compile(r"share-(\d+)\.claim-(\d+)")
_DONE = re.compile(r"share-(\d+)\.done")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,64}")


@dataclass(frozen=True)
class Worker:
    """A process that works on a batch. `is_named`: a later process of the same name continues for it."""

    name: str
    attempt: int
    is_named: bool
    host: str
    process: int
    started: str
    """When the process began, as its machine's kernel counts: numbers of processes are used again."""

    @property
    def id(self) -> str:
        """Unlike all others': NAME-ATTEMPT."""
        return f"{self.name}-{self.attempt}"


class Claim(NamedTuple):
    """A share to answer; of one that was taken over, some may be answered already."""

    share: int
    taken_over: bool = False


def worker_name(wanted: str | None, environ: Mapping[str, str]) -> tuple[str, bool]:
    """The name of this process among those of a batch, and whether a restart will have it again."""
    if wanted is not None:
        if not _NAME.fullmatch(wanted):
            raise ConfigError(f"job.worker={wanted}: up to 64 letters, digits, dots and underscores.")
        return wanted, True
    if environ.get("SLURM_ARRAY_TASK_ID"):
        return f"task{environ['SLURM_ARRAY_TASK_ID']}", True
    if environ.get("SLURM_JOB_ID"):
        return f"job{environ['SLURM_JOB_ID']}", True
    return "worker", False


class Shares:
    """The folder, seen by one process."""

    def __init__(self, folder: Path, name: str, is_named: bool, stale_s: float) -> None:
        """Make the folder and take the first free attempt of the name. Raises BatchError."""
        self.folder, self._stale_s = folder, stale_s
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._beats = 0
        try:
            folder.mkdir(exist_ok=True)
            self.me = self._enter(name, is_named)
            self.beat()  # from now on nobody removes the folder
        except OSError as error:
            raise cannot_write(folder, error) from None

    @property
    def part(self) -> Path:
        """This process' own part file, which is not there yet."""
        return self.folder / f"part-{self.me.id}.jsonl"

    def parts(self) -> list[Path]:
        """All part files, in order of name."""
        return sorted(self.folder.glob("part-*.jsonl"))

    def agree(self, content: dict[str, Any]) -> None:
        """Write what is shared, or compare it with what was written. Raises ConfigError naming what differs."""
        file = self.folder / "batch.json"
        temporary = self.folder / f"batch-{self.me.id}.new"
        try:
            if not file.exists():
                temporary.write_text(json.dumps(content, indent=1))
                temporary.replace(file)
            theirs = json.loads(file.read_text())
        except OSError as error:
            raise cannot_write(file, error) from None
        different = [name for name in content if theirs.get(name) != content[name]]
        if different:
            raise ConfigError(
                f"{self.folder} belongs to another run: its {' and '.join(different)} differ. Go on with the same "
                "words and files as before, or give another job.output, or remove the folder to begin anew."
            )

    def beat(self) -> None:
        """Show that this process lives; from its own thread."""
        self._beats += 1
        (self.folder / f"alive-{self.me.id}").write_text(str(self._beats))

    def claim(self, count: int) -> Claim | None:
        """A share of `count` to answer: a free one, else one of a dead process; None if there is none now."""
        try:
            names = [one.name for one in self.folder.iterdir()]
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        done = {int(match[1]) for name in names if (match := _DONE.fullmatch(name))}
        claims: dict[int, int] = {}
        for name in names:
            if match := _CLAIM.fullmatch(name):
                claims[int(match[1])] = max(int(match[2]), claims.get(int(match[1]), 0))
        for share in range(count):
            if share not in claims and share not in done and self._make(share, 0):
                return Claim(share)
        for share, generation in sorted(claims.items()):
            if share not in done and self._is_lost(share, generation) and self._make(share, generation + 1):
                return Claim(share, taken_over=True)
        return None

    def unfinished(self, count: int) -> list[int]:
        """The shares that are not done."""
        return [share for share in range(count) if not self._done(share).exists()]

    def finish(self, share: int) -> None:
        """Every record of the share has its line on disk."""
        try:
            self._done(share).touch()
        except OSError as error:
            raise cannot_write(self._done(share), error) from None

    def reopen(self, share: int) -> None:
        """Lines of a share that was done are missing: whoever comes answers them."""
        for file in (*self.folder.glob(f"share-{share}.claim-*"), self._done(share)):
            file.unlink(missing_ok=True)

    def leave(self) -> bool:
        """This process works no more on the batch; whether nobody else seems to."""
        (self.folder / f"alive-{self.me.id}").unlink(missing_ok=True)
        others = [self._worker(file.name.removeprefix("alive-")) for file in self.folder.glob("alive-*")]
        return all(one is not None and self._is_known_dead(one) for one in others)

    def _done(self, share: int) -> Path:
        return self.folder / f"share-{share}.done"

    def _enter(self, name: str, is_named: bool) -> Worker:
        attempt = 0
        while True:
            started = _started(os.getpid()) or ""
            me = Worker(name, attempt, is_named, socket.gethostname(), os.getpid(), started)
            if _create(self.folder / f"worker-{me.id}", json.dumps(dataclasses.asdict(me))):
                return me
            attempt += 1

    def _make(self, share: int, generation: int) -> bool:
        file = self.folder / f"share-{share}.claim-{generation}"
        try:
            return _create(file, self.me.id)
        except OSError as error:
            raise cannot_write(file, error) from None

    def _is_lost(self, share: int, generation: int) -> bool:
        """Whether the process of a claim is dead, as far as can be known."""
        claim = self.folder / f"share-{share}.claim-{generation}"
        try:
            owner = claim.read_text()
        except OSError:
            return False  # reopened, or finished and removed
        if owner == self.me.id:
            return False
        worker = self._worker(owner)
        if worker is not None and self._is_known_dead(worker):
            return True
        return self._is_stale(owner or claim.name)

    def _worker(self, owner: str) -> Worker | None:
        try:
            return Worker(**json.loads((self.folder / f"worker-{owner}").read_text()))
        except (OSError, ValueError, TypeError):
            return None  # being written

    def _is_known_dead(self, worker: Worker) -> bool:
        if worker.is_named and worker.name == self.me.name:
            return worker.attempt < self.me.attempt
        is_here = worker.host == self.me.host and worker.started != ""
        return is_here and _started(worker.process) != worker.started

    def _is_stale(self, owner: str) -> bool:
        try:
            number = (self.folder / f"alive-{owner}").read_bytes()
        except OSError:
            number = b""
        now = time.monotonic()
        if owner not in self._seen or self._seen[owner][0] != number:
            self._seen[owner] = (number, now)
        return now - self._seen[owner][1] > self._stale_s


def _create(file: Path, content: str) -> bool:
    """Make a file with a content, if there is none of the name."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as opened:
        opened.write(content)
    return True


def _started(process: int) -> str | None:
    """When a process of this machine began; None if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
