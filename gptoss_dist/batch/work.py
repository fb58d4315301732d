"""A batch from rank 0's side: scan, resume, answer, and, when nothing is left, merge and check.

scan ─► claim shares ─► answer what has no line yet ─► nothing left: merge, check, manifest
            ▲                                      │
            └── a share of a dead process ◄────────┴─ others still work: watch them for a while, then leave
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gptoss_dist.batch.answers import Answer, begin
from gptoss_dist.batch.calls import CallLimits
from gptoss_dist.batch.driver import IDLE_S, Driver
from gptoss_dist.batch.feed import Feed
from gptoss_dist.batch.finished import Finished
from gptoss_dist.batch.functions import Functions
from gptoss_dist.batch.manifest import content_digest, now, read_manifest, shared_facts, write_manifest
from gptoss_dist.batch.merge import merge, sync_folder
from gptoss_dist.batch.output_files import check_nothing_else_there, output_of, parts_folder, stdin_copy
from gptoss_dist.batch.part import PartWriter
from gptoss_dist.batch.progress import BatchProgress
from gptoss_dist.batch.records import Record
from gptoss_dist.batch.rounds import begin_rounds
from gptoss_dist.batch.scan import Scan, scan
from gptoss_dist.batch.shares import Shares
from gptoss_dist.batch.summary import Tally
from gptoss_dist.engine.engine import Engine
from gptoss_dist.errors import BatchError, ConfigError, PromptError
from gptoss_dist.log import get_logger
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.run import RunConf
from gptoss_dist.server.served_model import ServedModel

logger = get_logger(__name__)

_LOOK_S = 0.2
_MOST_SHARES = 128
"""Shares of a batch whose job.share says nothing, until they reach `_LARGEST_SHARE` records."""
_LARGEST_SHARE = 512


def check_records(found: Scan) -> None:
    """Raise PromptError for an input of which no batch can be made."""
    if not found.records:
        names = ", ".join(str(one.path) for one in found.sources)
        raise PromptError(f"job.input: there is no record in {names or 'it'}.")
    if found.refused == found.records:
        raise PromptError(
            f"job.input: not one of {found.records} records can be answered. The first: {found.first_refusal}"
        )


def finished_before(run: RunConf, found: Scan) -> dict[str, Any] | None:
    """The summary of this very batch, if it is over. Raises ConfigError if the output is another's."""
    assert isinstance(run.job, BatchConf)
    output = output_of(run.job)
    manifest = read_manifest(output)
    if manifest is not None and manifest.get("input_digest") == found.digest:
        if manifest.get("configuration") != content_digest(run):
            raise ConfigError(f"{output} holds the answers of another configuration. Give another job.output.")
        logger.info("%s is complete already", output)
        stdin_copy(output).unlink(missing_ok=True)
        return {**Tally().content(), **manifest["summary"], "complete": True, "output": str(output)}
    check_nothing_else_there(output)
    return None


class Batch:
    """One process' work on a batch; `run` does it all."""

    def __init__(
        self,
        run: RunConf,
        engine: Engine,
        model: ServedModel,
        plan: str,
        window: int,
        should_stop: Callable[[], bool],
        functions: Functions | None = None,
    ) -> None:
        """`plan` says for the manifest how the model lies over the ranks; `window` is the driver's; `functions` are
        what the model may call.
        """
        assert isinstance(run.job, BatchConf)
        self._run, self._job, self._engine, self._model, self._plan = run, run.job, engine, model, plan
        self._window, self._should_stop, self._functions = window, should_stop, functions
        self._output = output_of(run.job)
        self._tally, self._finished = Tally(), Finished()
        self._pulse = _Pulse(engine)

    def run(self, paths: Sequence[Path], name: str, is_named: bool) -> dict[str, Any]:
        """Answer what can be answered by this process, known as `name`; the summary.

        Its `complete` says whether the output is there, with all ids. Raises BatchError.
        """
        found = scan(paths, self._pulse, self._job.column)
        self._say_found(found)
        check_records(found)
        if (content := finished_before(self._run, found)) is not None:
            return content
        try:
            return self._work(found, paths, name, is_named)
        except (BatchError, FileNotFoundError):  # the parts are gone: by a process that has merged them meanwhile?
            if read_manifest(self._output) is None or (content := finished_before(self._run, found)) is None:
                raise
            return content

    def _work(self, found: Scan, paths: Sequence[Path], name: str, is_named: bool) -> dict[str, Any]:
        """Claim, answer and, if nothing is left, merge; the summary."""
        size = self._job.share or max(1, min(_LARGEST_SHARE, found.records // _MOST_SHARES))
        shares = Shares(parts_folder(self._output), name, is_named, self._job.stale_s)
        shares.agree(shared_facts(self._run, found))
        begun = now()
        is_complete = self._answer(found, paths, shares, size)
        content = {**self._tally.content(), "complete": is_complete, "output": str(self._output)}
        if not is_complete:
            content["left"] = found.records - len(self._finished)
        if self._functions is not None:
            content["functions"] = self._functions.summary()
        if is_complete:
            content = self._close(found, shares, begun, content)
        else:
            shares.leave()
        return content

    def _say_found(self, found: Scan) -> None:
        logger.info("%d records in %d files", found.records, len(found.sources))
        if found.without_id:
            logger.info("%d of them have no id: the line's number is theirs", found.without_id)
        if found.renamed:
            logger.warning("%d ids are used again: those records get error lines, as ID#NUMBER", len(found.renamed))

    def _answer(self, found: Scan, paths: Sequence[Path], shares: Shares, size: int) -> bool:
        """Answer until nothing is left for this process; whether the output is complete."""
        finished = self._finished
        finished.look(shares.parts(), self._pulse)
        if len(finished):
            logger.info("%d records have their answer already", len(finished))
        writer = PartWriter(shares.part, shares.beat)
        progress = BatchProgress(found.records - len(finished), self._tally)
        feed = Feed(found, paths, shares, finished, size, self._job.order, writer.sync)
        driver = Driver(self._engine, self._begin, feed, writer, self._tally, self._window)
        try:
            return self._drain(found, shares, driver, feed, progress)
        finally:
            progress.close()
            writer.close()

    def _begin(self, record: Record) -> Answer:
        """A record's answer. Raises ApiError."""
        if self._functions is None:
            return begin(record, self._model)
        limits = CallLimits(self._job.rounds, self._job.function_s)
        return begin_rounds(record, self._model, self._functions, limits)

    def _drain(self, found: Scan, shares: Shares, driver: Driver, feed: Feed, progress: BatchProgress) -> bool:
        quiet_since, before = time.monotonic(), -1
        while True:
            driver.drain(self._should_stop, self._job.grace_s, progress.show)
            if self._should_stop():
                logger.info("stopped: what is not answered is left for the next start")
                return False
            if not (unfinished := shares.unfinished(feed.count)):
                if not self._merge(found, shares, feed):
                    continue
                return True
            if before != self._tally.records:
                quiet_since, before = time.monotonic(), self._tally.records
            if time.monotonic() - quiet_since > 1.5 * self._job.stale_s:
                logger.info("%d shares are with other processes, which live: the last one merges", len(unfinished))
                return False
            self._pulse()
            time.sleep(_LOOK_S)

    def _merge(self, found: Scan, shares: Shares, feed: Feed) -> bool:
        """Write the output; False if lines were missing, whose shares are then open again."""
        self._total = Tally()
        merged = merge(found, shares.parts(), self._output, shares.me.id, self._total, self._pulse)
        if merged.twice:
            logger.info("%d records were answered twice; the first answer of each is kept", merged.twice)
        if merged.missing:
            logger.warning("%d answers are gone from %s; they are made again", len(merged.missing), shares.folder)
            for share in {feed.share_of(number) for number in merged.missing}:
                shares.reopen(share)
        return not merged.missing

    def _close(self, found: Scan, shares: Shares, begun: str, summary: dict[str, Any]) -> dict[str, Any]:
        """The manifest, and an end to the parts."""
        total = self._total.content()
        counts = {name: total[name] for name in ("records", "answered", "errors", "finish_reasons", "prompt_tokens")}
        counts |= {name: total[name] for name in ("output_tokens", "reasoning_tokens", "output_length")}
        content = {
            "output": self._output.name,
            "inputs": [{"file": str(one.path), "bytes": one.size, "sha256": one.digest} for one in found.sources],
            "input_digest": found.digest,
            "configuration": content_digest(self._run),
            "model": {"name": self._model.name, "fingerprint": self._model.fingerprint},
            "plan": self._plan,
            "summary": counts,
            "workers": sorted(one.stem.removeprefix("part-") for one in shares.parts()),
            "started": begun,
            "ended": now(),
            "program": f"gptoss-dist {metadata.version('gptoss-dist')}",
        }
        write_manifest(self._output, content, shares.me.id)
        sync_folder(self._output.parent)
        logger.info("%s: %d records in, %d lines out, none twice", self._output, found.records, total["records"])
        if shares.leave() and not self._job.keep_parts:
            self._remove(shares.folder)
        return {**summary, "records_in": found.records, "records_out": total["records"]}

    def _remove(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
            stdin_copy(self._output).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s can be removed; here it could not be: %s", folder, error)


class _Pulse:
    """Called often while the engine has nothing to do: tells now and then whether the other ranks are alive."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._last = engine, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > IDLE_S:
            self._engine.step()
            self._last = time.monotonic()
