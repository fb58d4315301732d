"""`job=batch`: JSONL in, JSONL out, every answer exactly once.

Rank 0 reads, submits and writes (gptoss_dist/batch); the other ranks follow it. A process that dies on the way
loses no line that was written: the same command goes on where it stopped. The output appears whole, in the order of
the input, once every record has its line; until then the lines grow in the folder OUTPUT.parts.

Exit status: 0 when the output is complete, or when only other processes' shares are left; 143 after SIGTERM.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_dist.batch.function_files import load_functions
from gptoss_dist.batch.manifest import read_manifest
from gptoss_dist.batch.output_files import check_output, output_of, parts_folder, stdin_copy
from gptoss_dist.batch.scan import scan
from gptoss_dist.batch.shares import worker_name
from gptoss_dist.batch.sources import find_inputs, keep_stdin
from gptoss_dist.batch.summary import text_of
from gptoss_dist.batch.work import Batch, check_records, finished_before
from gptoss_dist.engine.engine import Engine
from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.log import get_logger
from gptoss_dist.output import write_line
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.run import Backend, RunConf
from gptoss_dist.server.served_model import ServedModel, fingerprint_of, names_of

if TYPE_CHECKING:
    from gptoss_dist.runtime.watch import Watch
    from gptoss_dist.session import Session

logger = get_logger(__name__)

_AFTER_GRACE_S = 5.0
"""From the end of the grace to the end of the process: the last lines are written, the ranks leave."""
_WINDOW = 1.5
"""Requests with the engine for each that can run: the next ones wait there while answers are written."""
_WINDOW_WITHOUT_BATCHING = 4
_QUICKLY_READ = 64 << 20
"""Bytes of input that are read twice, in a second or two, so that it is refused before minutes go into loading."""


def check(run: RunConf) -> None:
    """Refuse what cannot be read or written, before anything is loaded."""
    job = run.job
    assert isinstance(job, BatchConf)
    if not job.output:
        raise ConfigError("job.output is missing: job.output=FILE, where the answers go.")
    ranges = (
        ("share", job.share is None or job.share >= 1, "1 or more, or null"),
        ("window", job.window is None or job.window >= 1, "1 or more, or null"),
        ("stale_s", job.stale_s >= 5, "seconds, 5 or more"),
        ("grace_s", 0 <= job.grace_s <= 86400, "seconds, 0 to 86400"),
        ("rounds", job.rounds >= 1, "1 or more"),
        ("function_s", 0 < job.function_s <= 86400, "seconds, above 0, up to 86400"),
    )
    for name, holds, wanted in ranges:
        if not holds:
            raise ConfigError(f"job.{name}={getattr(job, name)}: must be {wanted}.")
    worker_name(job.worker, os.environ)
    output = output_of(job)
    inputs = find_inputs(job.input, job.column)
    if output.resolve() in [path.resolve() for path in inputs if path is not None]:
        raise ConfigError(f"job.output={job.output} is an input too. Give another file.")
    if None in inputs and parts_folder(output).exists() and not stdin_copy(output).exists():
        raise ConfigError(
            f"{parts_folder(output)} belongs to a batch whose input was no stdin. Give another job.output."
        )
    check_output(output)
    if job.functions is not None:
        load_functions(job.functions)


def before_loading(run: RunConf) -> dict[str, Any] | None:
    """The summary of a batch that is over: the input is read, and no model loaded. For rank 0, after `check`.

    An input of which no batch can be made is refused here too, if reading it takes no time that counts. Raises
    ConfigError for an output that is another batch's, and PromptError.
    """
    job = run.job
    assert isinstance(job, BatchConf)
    output = output_of(job)
    if read_manifest(output) is None:
        inputs = find_inputs(job.input, job.column)
        files = [path for path in inputs if path is not None]
        if len(files) == len(inputs) and sum(_size(path) for path in files) <= _QUICKLY_READ:
            check_records(scan(files, column=job.column))
        return None
    try:
        return finished_before(run, scan(_paths(job), column=job.column))
    except (ConfigError, PromptError):
        stdin_copy(output).unlink(missing_ok=True)  # else it would be the next start's input
        raise


def show(content: dict[str, Any]) -> None:
    """Print a summary for people."""
    write_line(text_of(content))


def run(session: Session, watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """The job on all ranks, as `jobs.table` wants it."""
    run, engine = session.run, session.engine
    assert isinstance(run.job, BatchConf)
    watch.allow_after_signal(run.job.grace_s + _AFTER_GRACE_S)
    if session.group.rank != 0:
        engine.follow()
        return None
    degrees = session.loaded.degrees
    plan = f"{session.loaded.plan.name}, dp={degrees.dp}, tp={degrees.tp}"
    model = served_model(run, session.backend, engine, session.loaded.checkpoint.shape.vocab, plan)
    window = run.job.window or window_of(run, session.backend, degrees.dp)
    content = answer_all(run, engine, model, plan, window, watch)
    engine.release()
    engine.step()  # with it the others go
    if not as_json:
        show(content)
    return content


def answer_all(
    run: RunConf, engine: Engine, model: ServedModel, plan: str, window: int, watch: Watch
) -> dict[str, Any]:
    """Rank 0's work; the summary."""
    job = run.job
    assert isinstance(job, BatchConf)
    name, is_named = worker_name(job.worker, os.environ)
    functions = None if job.functions is None else load_functions(job.functions)
    batch = Batch(run, engine, model, plan, window, watch.stop_requested.is_set, functions)
    try:
        return batch.run(_paths(job), name, is_named)
    except (ConfigError, PromptError):
        output = output_of(job)
        if not parts_folder(output).exists():  # nothing was begun: what was typed wrong is not the next start's input
            stdin_copy(output).unlink(missing_ok=True)
        raise


def served_model(run: RunConf, backend: Backend, engine: Engine, vocabulary: int, plan: str) -> ServedModel:
    """What records are answered by; whatever model they name."""
    assert isinstance(run.job, BatchConf)
    names = names_of(run.model, None)
    return ServedModel(
        name=names[0],
        aliases=names,
        any_model=True,
        context=engine.context,
        vocabulary=vocabulary,
        created=int(time.time()),
        fingerprint=fingerprint_of(names, plan, backend.value),
        generation=run.generation,
        date=run.job.date,
    )


def window_of(run: RunConf, backend: Backend, replicas: int) -> int:
    """Requests with the engine at once, where job.window does not say."""
    if backend is Backend.transformers:
        return _WINDOW_WITHOUT_BATCHING * replicas
    return int(_WINDOW * run.engine.max_running) * replicas + 1


def _size(path: Path) -> float:
    """Bytes that reading a file takes; of what is packed, a table or a pipe nobody knows."""
    is_plain = path.is_file() and path.suffix not in (".parquet", ".gz", ".zst")
    return path.stat().st_size if is_plain else float("inf")


def _paths(job: BatchConf) -> list[Path]:
    """The input's files; standard input is kept as one."""
    copy = stdin_copy(output_of(job))
    return [path if path is not None else _stdin(copy) for path in find_inputs(job.input, job.column)]


def _stdin(file: Path) -> Path:
    """Standard input, kept for a restart; one that was kept before is the input, and standard input is not read."""
    if file.exists():
        logger.info("the input is the standard input of the first start, kept as %s", file)
        return file
    return keep_stdin(file)
