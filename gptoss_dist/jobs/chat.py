"""`job=chat`: a conversation in the terminal, with the model on these ranks or with a server (`job.target=URL`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gptoss_dist.chat.conversation import Conversation
from gptoss_dist.chat.interrupts import Interrupts
from gptoss_dist.chat.keyboard import Keyboard
from gptoss_dist.chat.loop import Chat
from gptoss_dist.chat.screen import Screen
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.jobs.inputs import list_of_objects, read_json
from gptoss_dist.jobs.table import Result
from gptoss_dist.schema.job.chat import ChatConf
from gptoss_dist.schema.run import RunConf

if TYPE_CHECKING:
    from gptoss_dist.model.checkpoint import Checkpoint
    from gptoss_dist.runtime.watch import Watch
    from gptoss_dist.session import Session


def check(run: RunConf) -> None:
    """Refuse instructions and tools that cannot be read before minutes go into loading."""
    _shortest_prompt(run)


def check_model(run: RunConf, checkpoint: Checkpoint) -> None:
    """Refuse instructions and tools that leave no room in the model's context for a first question."""
    context, tokens = checkpoint.shape.max_position, len(_shortest_prompt(run))
    if tokens >= context:
        raise DoesNotFitError(
            f"job.system and job.tools take {tokens} tokens, and the model's context is {context}. Shorten them."
        )


def run(session: Session, watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """Rank 0 talks with the user, the others follow."""
    if session.group.rank != 0:
        session.engine.follow()
        return None
    from gptoss_dist.chat.local import LocalModel

    run, job = session.run, session.run.job
    assert isinstance(job, ChatConf)
    interrupts = Interrupts(sys.stdin)
    watch.on_stop(interrupts.restore)
    model = LocalModel(session, watch.stop_requested.is_set, interrupts)
    chat = Chat(model, _conversation(run), Keyboard(model.idle), Screen(job.show_analysis), watch.stop_requested.is_set)
    result = chat.run()
    model.close()
    return result if as_json else None


def run_alone(run: RunConf, as_json: bool) -> Result:
    """With a server: no ranks, no model here."""
    from gptoss_dist.chat.remote import RemoteModel

    job = run.job
    assert isinstance(job, ChatConf)
    assert job.target is not None
    check(run)
    conversation = _conversation(run)
    model = RemoteModel(job.target, job.target_model, run.generation)
    chat = Chat(model, conversation, Keyboard(model.idle), Screen(job.show_analysis), lambda: False)
    result = chat.run()
    model.close()
    return Result(result, None if as_json else "")


def _conversation(run: RunConf) -> Conversation:
    job = run.job
    assert isinstance(job, ChatConf)
    tools = []
    if job.tools is not None:
        tools = list_of_objects(read_json(job.tools, "job.tools"), f"job.tools={job.tools}")
    return Conversation(run.generation.reasoning_effort, job.system, tuple(tools), job.date)


def _shortest_prompt(run: RunConf) -> list[int]:
    """The tokens of a conversation that has hardly begun. Raises PromptError."""
    conversation = _conversation(run)
    conversation.say("?")
    return conversation.tokens()
