"""A batch over a scripted engine: in this process, or as a script with INPUT OUTPUT NAME DELAY_S STALE_S.

The engine answers a prompt that ends in the user's words W with `re: W`.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_dist.batch.work import Batch
from gptoss_dist.engine.scripted import Script, ScriptedEngine
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.log import set_up_logging
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.schema.run import RunConf
from gptoss_dist.server.served_model import ServedModel

USER = re.compile(r"<\|start\|>user<\|message\|>(.*?)<\|end\|>", re.DOTALL)
_FINAL = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>re: {}<|return|>"


def engine_of(delay_s: float = 0.0, max_running: int = 8) -> ScriptedEngine:
    encoding = load_encoding()

    def choose(prompt: tuple[int, ...]) -> Script:
        said = USER.findall(encoding.decode(list(prompt)))[-1]
        return Script(tuple(encoding.encode(_FINAL.format(said), allowed_special="all")), delay_s)

    return ScriptedEngine(choose, EngineConf("test", max_running=max_running))


def model_of(engine: ScriptedEngine, generation: GenerationConf | None = None) -> ServedModel:
    generation = generation or GenerationConf(max_new_tokens=64, temperature=0.0)
    return ServedModel("test", ("test",), True, engine.context, 201088, 0, "fp", generation, None)


def run_of(output: Path, **keys: Any) -> RunConf:
    model = ModelConf("test", "test")
    return RunConf(model=model, job=BatchConf("batch", output=str(output), **{"stale_s": 5.0, **keys}))


def answer(
    paths: list[Path],
    output: Path,
    name: str = "worker",
    is_named: bool = True,
    engine: ScriptedEngine | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    window: int = 8,
    **keys: Any,
) -> dict[str, Any]:
    engine = engine or engine_of()
    batch = Batch(run_of(output, **keys), engine, model_of(engine), "single", window, should_stop)
    return batch.run(paths, name, is_named)


def write_records(file: Path, count: int, start: int = 0) -> Path:
    with file.open("w") as lines:
        for number in range(start, start + count):
            lines.write(json.dumps({"id": f"r{number}", "prompt": f"question {number}"}) + "\n")
    return file


def answers_in(output: Path) -> dict[str, str]:
    """Id → text of the answer, or the error's code; asserts that no id comes twice."""
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    repeated = [name for name, count in Counter(one["custom_id"] for one in lines).items() if count > 1]
    assert not repeated
    return {one["custom_id"]: _said(one) for one in lines}


def expected(count: int) -> dict[str, str]:
    return {f"r{number}": f"re: question {number}" for number in range(count)}


def _said(line: dict[str, Any]) -> str:
    if line["error"] is not None:
        return str(line["error"]["code"])
    assert line["response"]["status_code"] == 200
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


def main() -> None:
    given, output, name, delay_s, stale_s = sys.argv[1:]
    set_up_logging("info")
    threading.current_thread().name = name
    engine = engine_of(float(delay_s))
    content = answer([Path(given)], Path(output), name, engine=engine, stale_s=float(stale_s), share=5)
    print(json.dumps(content))


if __name__ == "__main__":
    main()
