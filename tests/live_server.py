"""A scripted server inside this process: real uvicorn, real sockets, no weights."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from gptoss_dist.engine.scripted import ScriptedEngine, ScriptedShape
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.server.app import build_app
from gptoss_dist.server.engine_loop import run_loop
from gptoss_dist.server.front import Front, bind
from gptoss_dist.server.keys import ApiKeys
from gptoss_dist.server.script import load_script
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.service import Service
from gptoss_dist.server.store import ResponseStore

MODEL = "openai/gpt-oss-20b"
ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>{}<|return|>"
CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"


class LiveServer:
    """`url` answers until `stop`."""

    def __init__(self, service: Service, front: Front, engine: ScriptedEngine, worker: threading.Thread) -> None:
        self.service, self.front, self.engine, self._worker = service, front, engine, worker
        self.url = front.url

    def metrics(self) -> dict[str, float]:
        """What /metrics shows, by its name with labels; 0 for what is not there yet."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line[:1] != "#")
        return defaultdict(float, {name: float(value) for name, _, value in pairs})

    def held_pages(self) -> float:
        return sum(
            value for name, value in self.metrics().items() if name.startswith("gptoss_kv_pages{") and "held" in name
        )

    def wait_until(self, what, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    def stop(self) -> None:
        self.service.drain(0.0)
        self._worker.join(10)
        self.front.stop()
        assert not self._worker.is_alive()


@contextlib.contextmanager
def serving(
    entries: list[dict],
    folder: Path,
    *,
    keys: tuple[str, ...] = (),
    max_waiting: int = 512,
    max_behind: int = 16384,
    max_body_mb: float = 8.0,
    any_model: bool = False,
    loaded: bool = True,
    store: ResponseStore | None = None,
    generation: GenerationConf | None = None,
    cors_origins: tuple[str, ...] = (),
    **engine: int,
) -> Iterator[LiveServer]:
    script = folder / "script.yaml"
    script.write_text(yaml.safe_dump(entries))
    conf = EngineConf(name="scripted", **{"cache_tokens": 8192, "max_running": 64, **engine})
    stage = ScriptedEngine(load_script(str(script)).choose, conf)
    service = Service(max_waiting, max_behind)
    kept = ResponseStore(1024, 2**28) if store is None else store
    app = build_app(service, ApiKeys(keys), max_body_mb, store=kept, cors_origins=cors_origins)
    front = Front(app, service, bind("127.0.0.1", 0))
    front.start()
    model = ServedModel(
        name=MODEL,
        aliases=(MODEL, "gpt_oss_20b"),
        any_model=any_model,
        context=stage.context,
        vocabulary=ScriptedShape().vocabulary,
        created=1_700_000_000,
        fingerprint="fp_test",
        generation=generation or GenerationConf(),
        date="2025-06-28",
    )
    arguments = (stage, service.mailbox, service.stepped, service.is_over.is_set, 0.05)
    worker = threading.Thread(target=run_loop, args=arguments, daemon=True)
    if loaded:
        service.open(model)
        worker.start()
    server = LiveServer(service, front, stage, worker)
    try:
        yield server
    finally:
        if loaded:
            server.stop()
        else:
            front.stop()
