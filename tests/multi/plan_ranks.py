"""What ranks do for the tests of plans: load one checkpoint after the other, and write down what each plan gave.

Also `serve_words`: the program's own `main` as a rank started by hand, without the seconds a fresh Python takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ports import free_port
from runtime_ranks import _context
from transformers import DynamicCache, GptOssForCausalLM
from transformers.distributed import DistributedConfig

import gptoss_dist
from gptoss_dist.config import compose_run
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.work import Work
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.jobs.generate import run_generate
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.model.load import local_shape
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.watch import Watch
from gptoss_dist.session import Session, open_session

LONG = 40  # tokens: more than twice the window of 16
FEW = 5
CACHED = (12, 20)
"""So many tokens in one prefill, then one by one up to so many: the window is left behind on the way."""
GREEDY = 8
SAMPLED = 4
SAMPLING_S = 0.2
LIBRARY = ("addition", "weather_call", "weather_result")
HERE = ("cluster.device=cpu", "backend=transformers")


@dataclass(frozen=True)
class Case:
    """One way to load one checkpoint."""

    checkpoint: str
    words: tuple[str, ...]
    conf: str | None = None

    @property
    def name(self) -> str:
        return "-".join([Path(self.checkpoint).parent.name, *self.words]).replace("/", "_")


def tokens(vocabulary: int = 512) -> torch.Tensor:
    return torch.randint(0, vocabulary, (1, LONG), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: Any) -> dict[str, torch.Tensor]:
    """A long prompt (experts in turn), a short one (route by route), and a prompt with steps through the cache."""
    ids = tokens()
    cache, steps = DynamicCache(config=model.config), []
    first, last = CACHED
    for start, stop in [(0, first), *((place, place + 1) for place in range(first, last))]:
        steps.append(model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True).logits[0])
    return {
        "long": model(input_ids=ids).logits[0],
        "few": model(input_ids=ids[:, :FEW]).logits[0],
        "cached": torch.cat(steps),
    }


def generated(session: Session) -> dict[str, tuple[int, ...]]:
    """Tokens of one greedy request, of the same prompt sampled three times by two seeds, and of one soon cancelled."""
    prompt = tuple(tokens()[0, : CACHED[0]].tolist())
    requests = [Request("greedy", prompt, Sampling(GREEDY, temperature=0))]
    requests += [Request(name, prompt, Sampling(SAMPLED, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    requests.append(Request("cancelled", prompt, Sampling(100)))
    answers: dict[str, tuple[int, ...]] = {request.id: () for request in requests}
    for event in session.engine.stream(requests):
        answers[event.request_id] += event.tokens
        if event.request_id == "cancelled":
            session.engine.cancel("cancelled")
    return answers


def measure(case: Case) -> dict[str, Any]:
    words = [
        "model=gpt_oss_20b",
        f"model.path={case.checkpoint}",
        "model.dtype=float32",
        "cluster.agree_every=3",
        *HERE,
    ]
    conf = Path(case.conf) if case.conf else None
    env = read_rank_env(os.environ)
    try:
        session = open_session(compose_run([*words, *case.words], conf), env)
    except GptOssDistError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    loaded = session.loaded
    result = {
        "logits": logits_of(loaded.model),
        "generated": generated(session),
        "shapes": {name: local_shape(one) for name, one in loaded.model.named_parameters()},
        "dtypes": {name: one.dtype for name, one in loaded.model.named_parameters()},
        "held": loaded.weight_bytes,
        "planned": loaded.planned.weights,
        "degrees": (loaded.degrees.dp, loaded.degrees.tp),
    }
    session.group.barrier()
    return result


def measure_cases(cases: list[Case], out: str, guide: str | None, watch: Watch | None, group: RankGroup | None) -> None:
    """Body of a rank: every case after the other, one file a case and rank. A process alone has no group."""
    torch.set_num_threads(1)
    rank = group.rank if group else 0
    for case in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.save(measure(case), Path(out) / f"{case.name}-{rank}.pt")
    if guide is not None:
        torch.save(upstreams_own(guide), Path(out) / f"guide-{rank}.pt")


def upstreams_own(checkpoint: str) -> dict[str, Any]:
    """What transformers itself makes of the guide's words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = DistributedConfig(enable_expert_parallel=True, tp_plan="auto")
        model = GptOssForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, distributed_config=config)
    shapes = {name: local_shape(one) for name, one in model.named_parameters()}
    return {"shapes": shapes, "warnings": [f"{one.category.__name__}: {one.message}" for one in caught]}


def converse(out: str, watch: Watch, group: RankGroup) -> None:
    """Body of a rank: every conversation of the toy by the job, some by the library too, into one file a rank."""
    torch.set_num_threads(1)
    model = gptoss_dist.load("tiny", plan="tp", overrides=["generation=greedy", *HERE])
    answers: dict[str, Any] = {}
    for one in CONVERSATIONS:
        file = Path(out, f"{one.name}-{group.rank}.json")
        file.write_text(json.dumps({"messages": one.messages, "tools": one.options.tools}))
        words = ["model=tiny", "plan=tp", "generation=greedy", f"job.messages={file}", *HERE]
        session = dataclasses.replace(model.session, run=compose_run(words))
        answers[one.name] = run_generate(session, True, lambda: False)
        if one.name in LIBRARY:
            answers[f"library {one.name}"] = dataclasses.asdict(model.chat(one.messages, options=one.options))
    try:
        model.generate([0] * 5000)
    except GptOssDistError as error:
        answers["refused"] = f"{type(error).__name__}: {error}"
    for _ in model.stream(CONVERSATIONS[0].messages):
        break
    answers["afterwards"] = model.generate([0] * 5, max_new_tokens=3)
    Path(out, f"answers-{group.rank}.json").write_text(json.dumps(answers))


def hold_a_share(checkpoint: str, out: str, watch: Watch, group: RankGroup) -> None:
    """Body of a rank: load by plan=tp; tell the process' id before, and the bytes of weights held after."""
    words = ["model=gpt_oss_20b", f"model.path={checkpoint}", "plan=tp", *HERE]
    run = compose_run(words)
    group.barrier()
    sign = Path(out, f"unfinished-{group.rank}")
    sign.write_text(str(os.getpid()))
    sign.rename(Path(out, f"loading-{group.rank}"))
    time.sleep(SAMPLING_S)
    session = open_session(run, read_rank_env(os.environ))
    Path(out, f"held-{group.rank}").write_text(str(session.loaded.weight_bytes))
    time.sleep(SAMPLING_S)
    session.group.barrier()


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs: not the pages of mapped checkpoint files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def part_ways(checkpoint: str, watch: Watch, group: RankGroup) -> None:
    """Body of a rank: generate; rank 1 comes to believe in another token than the others after a few steps."""
    words = ["model=gpt_oss_20b", f"model.path={checkpoint}", "plan=tp", "cluster.agree_every=4", *HERE]
    session = open_session(compose_run(words), read_rank_env(os.environ))
    compute: Any = session.engine._compute  # type: ignore[attr-defined]
    steps = itertools.count()

    def compute_apart() -> Work:
        if next(steps) == 5:
            session.engine._fingerprint.update([511])  # type: ignore[attr-defined]
        return compute()

    if group.rank == 1:
        session.engine._compute = compute_apart  # type: ignore[attr-defined]
    for _ in session.engine.stream([Request("one", (1, 2, 3), Sampling(200))]):
        pass


def serve_words(words: list[str], log: str, variables: dict[str, str], folder: str) -> None:
    """A rank's whole life as `python -m gptoss_dist WORDS` in `folder`, its output in `log.out` and `log.err`."""
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123  open for the rank's whole life
    os.environ.update(variables)
    os.chdir(folder)
    from gptoss_dist.cli import main

    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class WordRanks:
    """Ranks started by hand, each with words of its own."""

    def __init__(self, words: list[list[str]], folder: Path, homes: Sequence[Path] = ()) -> None:
        """`homes`: the folder that each rank runs in; else all run in this one."""
        homes = homes or [Path.cwd()] * len(words)
        folder.mkdir(parents=True, exist_ok=True)
        port = str(free_port())
        self.logs = [folder / f"rank{rank}" for rank in range(len(words))]
        self.processes = []
        for rank, own in enumerate(words):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(len(words)),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            process = _context.Process(
                target=serve_words, args=(own, str(self.logs[rank]), variables, str(homes[rank]))
            )
            process.start()
            self.processes.append(process)

    def statuses(self, within_s: float = 90.0) -> list[int | None]:
        """Exit statuses by rank once all have ended; a rank still alive after `within_s` is ended and None."""
        deadline = time.monotonic() + within_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.is_alive():
                process.kill()
        return found

    def out(self, rank: int) -> str:
        return self.logs[rank].with_suffix(".out").read_text()

    def err(self) -> str:
        return "".join(log.with_suffix(".err").read_text() for log in self.logs if log.with_suffix(".err").exists())
