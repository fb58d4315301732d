"""The stages of `measure.py`: what each runs, how long it may take, and what it needs. Sets fit ten minutes each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SETS = {
    "right": ("packages", "machine", "synth-layers", "doctor", "kernels", "step", "synth", "bench"),
    "speed": ("packages", "synth", "profile", "synth-layers", "profile-prefill", "step-whole"),
    "rest": ("packages", "synth-20b", "bench-20b", "experts", "experts-20b", "soak", "attention", "small"),
    "ranks": (
        *("packages", "synth-layers", "doctor-ranks", "step-ranks", "small-ranks", "profile-ranks"),
        *("synth", "bench-ranks"),
    ),
}
"""Each in the order of what is most worth knowing; the last needs several GPUs."""


@dataclass(frozen=True)
class Place:
    """Where stages run."""

    root: Path
    work: Path
    gpus: int
    packages: Path | None
    vocabulary: Path | None
    dry: bool

    @property
    def site(self) -> Path:
        """Where the wheels are installed."""
        return self.work / "gptoss-packages"

    def checkpoint(self, name: str) -> str:
        """The folder of a random checkpoint."""
        return str(self.work / f"gptoss-{'dry-' if self.dry else ''}{name}")

    def environment(self) -> dict[str, str]:
        """Of every stage."""
        paths = [str(self.root), str(self.root / "tests"), *([str(self.site)] if self.packages else [])]
        found = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
        found |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        if self.dry:
            found["OMP_NUM_THREADS"] = "1"
        if self.vocabulary is not None:
            found["TIKTOKEN_ENCODINGS_BASE"] = str(self.vocabulary.resolve())
        return found


@dataclass(frozen=True)
class Stage:
    """One process."""

    name: str
    seconds: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Stages without which it is not begun, if they were run and failed."""
    environment: tuple[tuple[str, str], ...] = ()


def stages_of(names: Sequence[str], place: Place) -> list[Stage]:
    """The stages of names and sets, in their order and once each. KeyError, in words, for a name that there is not."""
    wanted = [one for name in names for one in SETS.get(name, (name,))]
    if unknown := [name for name in wanted if name not in _STAGES]:
        raise KeyError(f"{unknown[0]}: no such stage. Sets: {', '.join(SETS)}. Stages: {', '.join(_STAGES)}.")
    made = [_STAGES[name](name, place) for name in dict.fromkeys(wanted)]
    return [stage for stage in made if stage.command]


def _python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)


def _gptoss(*words: str) -> tuple[str, ...]:
    return _python("-m", "gptoss_dist", *words)


def _program(place: Place, name: str, *words: str) -> tuple[str, ...]:
    return _python(str(place.root / "tests" / "gpu" / name), *words)


def _packages(name: str, place: Place) -> Stage:
    if place.packages is None:
        return Stage(name, 0, ())
    wheels = sorted(map(str, place.packages.resolve().glob("*.whl")))
    options = ("-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target")
    return Stage(name, 90, _python("-m", "pip", "install", *options, str(place.site), *wheels))


def _machine(name: str, place: Place) -> Stage:
    return Stage(name, 60, _program(place, "machine_facts.py"), ("packages",))


def _synth(size: str, seconds: float, *words: str) -> Callable[[str, Place], Stage]:
    """Writes a random checkpoint, unless it is there; `words` only of real sizes."""

    def make(name: str, place: Place) -> Stage:
        folder = place.checkpoint(name.removeprefix("synth-") if name != "synth" else size)
        shape = ("tiny",) if place.dry else (size, *words)
        return Stage(name, seconds, _program(place, "synth_once.py", folder, *shape), ("packages",))

    return make


def _doctor(plan: str) -> Callable[[str, Place], Stage]:
    """What the program itself says of the machine, by the plan of the other stages."""

    def make(name: str, place: Place) -> Stage:
        lie = (f"plan={plan}", *(() if plan == "single" else (f"plan.tp={place.gpus}",)))
        words = ("model=gpt_oss_120b", f"model.path={place.checkpoint('layers')}", *lie, "--json")
        device = ("cluster.device=cpu",) if place.dry else ()
        return Stage(name, 60, _gptoss("doctor", *words, *device), ("packages",))

    return make


def _kernels(name: str, place: Place) -> Stage:
    parts = ("expert_kernels", "attention_kernels", "small_kernels", "graphs", "choice")
    files = [str(place.root / "tests" / "gpu" / f"test_{part}.py") for part in parts]
    options = ("-q", "-p", "no:cacheprovider", "-W", "default")
    if not place.dry:  # a process for some of the cores: most of the time is the compiler's
        options += ("--numprocesses=8", "--dist=worksteal")
    return Stage(name, 260, _python("-m", "pytest", *options, *files), ("packages",))


def _step(checkpoint: str, needed: str, seconds: float, *words: str) -> Callable[[str, Place], Stage]:
    def make(name: str, place: Place) -> Stage:
        depths = ("--depths", "1", "4") if place.dry else words
        given = ("1", "single", "--checkpoint", place.checkpoint(checkpoint), *depths)
        return Stage(name, seconds, _program(place, "compare_engine.py", *given), (needed,))

    return make


def _step_ranks(name: str, place: Place) -> Stage:
    given = (str(place.gpus), "tp", "ep", "tp_ep", "--checkpoint", place.checkpoint("layers"))
    return Stage(name, 300, _program(place, "compare_engine.py", *given), ("synth-layers",))


def _small_ranks(name: str, place: Place) -> Stage:
    launch = _python("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={place.gpus}")
    words = ("--dry-run",) if place.dry else ()
    return Stage(name, 90, (*launch, *_program(place, "time_small.py", *words)[1:]), ("packages",))


def _profile(
    checkpoint: str, needed: str, seconds: float, *words: str, dry: tuple[str, ...] = ()
) -> Callable[[str, Place], Stage]:
    def make(name: str, place: Place) -> Stage:
        given = ("--checkpoint", place.checkpoint(checkpoint), *(dry if place.dry else words))
        return Stage(name, seconds, _program(place, "profile_step.py", *given), (needed,))

    return make


def _profile_ranks(name: str, place: Place) -> Stage:
    launch = _python("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={place.gpus}")
    sizes = ("--prefill", "40") if place.dry else ("--prefill", "1024", "8192", "--batches", "1", "64")
    given = ("--checkpoint", place.checkpoint("layers"), "--plan", "tp", *sizes)
    return Stage(name, 90, (*launch, *_program(place, "profile_step.py", *given)[1:]), ("synth-layers",))


def _bench(checkpoint: str, needed: str, seconds: float, *words: str, plan: str = "single") -> Callable[..., Stage]:
    """`words` where there are GPUs; a dry run has rows of its own."""

    def make(name: str, place: Place) -> Stage:
        model = (f"model.path={place.checkpoint(checkpoint)}", "model=gpt_oss_120b", "backend=engine")
        lie = (f"plan={plan}", *(() if plan == "single" else (f"plan.tp={place.gpus}",)))
        rows = words
        if place.dry:
            rows = ("kernels=auto", "cluster.device=cpu", "model.dtype=float32", "engine.cache_tokens=4096")
            rows += ("job.input_tokens=20", "job.output_tokens=8", "job.streams=[1,3]", "job.rounds=1")
            rows += ("job.soak_s=5",) if name == "soak" else ("job.prefill=[2x30]",)
        return Stage(name, seconds, _gptoss("bench", *model, *lie, *rows, "--json"), (needed,))

    return make


def _times(program: str, seconds: float, *words: str) -> Callable[[str, Place], Stage]:
    def make(name: str, place: Place) -> Stage:
        given = _program(place, program, *(("--dry-run",) if place.dry else words))
        return Stage(name, seconds, given, ("packages",), (("TRITON_INTERPRET", "1"),) if place.dry else ())

    return make


_STAGES: dict[str, Callable[[str, Place], Stage]] = {
    "packages": _packages,
    "machine": _machine,
    "synth-layers": _synth("120b", 90, "4"),
    "doctor": _doctor("single"),
    "doctor-ranks": _doctor("tp"),
    "kernels": _kernels,
    "step": _step("layers", "synth-layers", 200),
    "profile-layers": _profile("layers", "synth-layers", 120, "--batches", "1", "8", "64"),
    "profile-prefill": _profile(
        "layers", "synth-layers", 120, "--prefill", "8192", "2048", dry=("--prefill", "40", "9")
    ),
    "synth": _synth("120b", 200),
    "bench": _bench("120b", "synth", 330, "job.suite=table"),
    "profile": _profile("120b", "synth", 150, "--batches", "1", "64"),
    "step-whole": _step("120b", "synth", 240, "--depths", "36"),
    "synth-20b": _synth("20b", 60),
    "bench-20b": _bench("20b", "synth-20b", 200, "job.suite=table"),
    "experts": _times(
        "time_experts.py", 150, "--cuts", "128x90", "--tokens", "1", "8", "64", "256", "1024", "2048", "8192"
    ),
    "experts-20b": _times(
        *("time_experts.py", 90, "--experts", "32", "--cuts", "32x90", "32x45", "--tokens", "16", "32", "48", "64"),
        *("128", "--only", "cuda"),
    ),
    "soak": _bench("20b", "synth-20b", 120, "job.streams=[64]", "job.soak_s=60"),
    "attention": _times("time_attention.py", 150, "--kv-heads", "8", "--page-sizes", "16"),
    "small": _times("time_small.py", 90),
    "step-ranks": _step_ranks,
    "small-ranks": _small_ranks,
    "profile-ranks": _profile_ranks,
    "bench-ranks": _bench("120b", "synth", 330, "job.suite=table", plan="tp"),
}
