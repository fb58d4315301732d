"""The terminal chat over a scripted engine: `python tests/scripted_chat.py SCRIPT`. No weights, no torch."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from gptoss_dist.chat.conversation import Conversation
from gptoss_dist.chat.interrupts import Interrupts
from gptoss_dist.chat.keyboard import Keyboard
from gptoss_dist.chat.local import LocalModel
from gptoss_dist.chat.loop import Chat
from gptoss_dist.chat.screen import Screen
from gptoss_dist.engine.scripted import ScriptedEngine
from gptoss_dist.runtime.watch import guard
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.server.script import load_script

CONTEXT = 4096


class ScriptedModel(LocalModel):
    """A model that says its name without being loaded."""

    name = "a script"


def session_of(script: str, **generation: Any) -> Any:
    """What a LocalModel asks of a session."""
    engine = ScriptedEngine(load_script(script).choose, EngineConf(name="scripted", cache_tokens=CONTEXT))
    return SimpleNamespace(engine=engine, run=SimpleNamespace(generation=GenerationConf(**generation)))


def main() -> None:
    """Talk as `gptoss chat` does on one rank."""
    with guard(None) as watch:
        interrupts = Interrupts(sys.stdin)
        watch.on_stop(interrupts.restore)
        model = ScriptedModel(session_of(sys.argv[1]), watch.stop_requested.is_set, interrupts)
        chat = Chat(model, Conversation(), Keyboard(model.idle), Screen(True), watch.stop_requested.is_set)
        print(json.dumps(chat.run()))


if __name__ == "__main__":
    main()
