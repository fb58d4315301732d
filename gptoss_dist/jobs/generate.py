"""`job=generate`: one prompt, one answer; rank 0 reads and prints, the others follow it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_dist.engine.request import Event, Finish, Request, Sampling, check_request
from gptoss_dist.jobs.prompt import check_prompt, prompt_tokens
from gptoss_dist.jobs.readers import TextReader, reader_for
from gptoss_dist.log import get_logger
from gptoss_dist.output import write, write_line
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.job.generate import GenerateConf
from gptoss_dist.schema.run import RunConf
from gptoss_dist.session import Session

if TYPE_CHECKING:
    from gptoss_dist.model.checkpoint import Checkpoint
    from gptoss_dist.runtime.watch import Watch

logger = get_logger(__name__)


def check(run: RunConf) -> None:
    """Refuse a prompt that is none, or cannot be read."""
    assert isinstance(run.job, GenerateConf)
    check_prompt(run, run.job)


def check_model(run: RunConf, checkpoint: Checkpoint) -> None:
    """Refuse a prompt that the model has no room or no tokens for. Raises DoesNotFitError and ConfigError."""
    context = checkpoint.shape.max_position
    check_request(_request(run, checkpoint.folder, context), checkpoint.shape.vocab, context)


def run(session: Session, watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """The job as `jobs.table` wants it."""
    return run_generate(session, as_json, watch.stop_requested.is_set)


def run_generate(session: Session, as_json: bool, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Generate on all ranks. Rank 0 gets the result as a dictionary, the others None.

    Rank 0 looks at `should_stop` after every step and then ends the answer where it is. Without `as_json` it writes the
    answer to standard output as it comes.
    """
    run, job = session.run, session.run.job
    assert isinstance(job, GenerateConf)
    if session.group.rank != 0:
        session.engine.follow()
        return None
    request = _request(run, session.loaded.checkpoint.folder, session.engine.context)
    reader = reader_for(job.template, run.generation.stop)
    logger.info("seed %d, %d prompt tokens", request.sampling.seed, len(request.prompt))
    show = None if as_json or not job.stream else write
    result = _generate(session, request, reader, show, should_stop)
    if not as_json and not job.stream:
        write_line(reader.text(job.show_analysis))
    if result["finish_reason"] == Finish.length.value:
        _say_cut(result["usage"], session.engine.context)
    return result


def _request(run: RunConf, folder: Path, context: int) -> Request:
    assert isinstance(run.job, GenerateConf)
    tokens = prompt_tokens(run, run.job, folder)
    stop_tokens = reader_for(run.job.template, ()).stop_tokens
    return Request("generate", tuple(tokens), sampling_of(run.generation, stop_tokens, context - len(tokens)))


def sampling_of(generation: GenerationConf, stop_tokens: tuple[int, ...], room: int) -> Sampling:
    """The engine's sampling from a run's keys; without a seed one is drawn, which is rank 0's to do.

    `room`: tokens that the context has left beside the prompt; an answer whose length nobody says may take them all.
    Where none is left one is asked for, which the engine refuses.
    """
    wanted = generation.max_new_tokens
    return Sampling(
        max_tokens=max(1, room) if wanted is None else wanted,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        min_p=generation.min_p,
        seed=secrets.randbelow(2**31) if generation.seed is None else generation.seed,
        stop_tokens=stop_tokens,
    )


def _generate(
    session: Session,
    request: Request,
    reader: TextReader,
    show: Callable[[str], None] | None,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    job = session.run.job
    assert isinstance(job, GenerateConf)
    started = time.perf_counter()
    first: float | None = None
    count, finish = 0, Finish.length
    for event in session.engine.stream([request]):
        if event.tokens and first is None:
            first = time.perf_counter()
        count += len(event.tokens)
        _feed(session, reader, event)
        if should_stop():
            session.engine.cancel(request.id)
        if event.finish is not None:
            finish = event.finish
        if show is not None:
            show(reader.take(job.show_analysis))
    ended = time.perf_counter()
    answer = reader.finish(finish)
    if show is not None:
        show(reader.take(job.show_analysis) + "\n")
    first = ended if first is None else first
    degrees = session.loaded.degrees
    return {
        **answer,
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": count,
            "total_tokens": len(request.prompt) + count,
        },
        "seed": request.sampling.seed,
        "plan": {"name": session.loaded.plan.name, "dp": degrees.dp, "tp": degrees.tp},
        "kernels": {"attention": session.loaded.kernels.attention, "experts": session.loaded.kernels.experts.value},
        "timing": {
            "load_s": round(session.loaded.seconds, 3),
            "first_token_s": round(first - started, 4),
            "tokens_per_s": round((count - 1) / (ended - first), 2) if count > 1 and ended > first else None,
        },
    }


def _say_cut(usage: dict[str, int], context: int) -> None:
    """An answer without its end looks like one that has it."""
    count = usage["completion_tokens"]
    if usage["total_tokens"] >= context:
        logger.warning("cut after %d tokens, at the end of the model's context of %d", count, context)
    else:
        logger.warning("cut after %d tokens; generation.max_new_tokens=NUMBER allows more", count)


def _feed(session: Session, reader: TextReader, event: Event) -> None:
    for token in event.tokens:
        if reader.stopped:
            return
        reader.feed(token)
        if reader.stopped:
            session.engine.cancel(event.request_id)
