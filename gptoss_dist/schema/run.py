"""A run: its groups, and which jobs there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gptoss_dist.schema.cluster import ClusterConf
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.job.base import JobConf
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.job.bench import BenchConf
from gptoss_dist.schema.job.chat import ChatConf
from gptoss_dist.schema.job.doctor import DoctorConf
from gptoss_dist.schema.job.generate import GenerateConf
from gptoss_dist.schema.job.plan import PlanJobConf
from gptoss_dist.schema.job.prefetch import PrefetchConf
from gptoss_dist.schema.job.serve import ServeConf
from gptoss_dist.schema.job.synth import SynthConf
from gptoss_dist.schema.job.tiny import TinyConf
from gptoss_dist.schema.kernels import KernelsConf
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.schema.node import Node
from gptoss_dist.schema.plan import PlanConf
from gptoss_dist.schema.slurm import SlurmConf


class Backend(Enum):
    """Which engine runs the steps: the model's own forward, or ours over a paged cache; auto: ours on GPUs."""

    auto = "auto"
    transformers = "transformers"
    engine = "engine"


@dataclass
class RunConf(Node):
    """One run, whole."""

    prompt: str | None = None
    backend: Backend = Backend.auto
    model: ModelConf = field(default_factory=ModelConf)
    plan: PlanConf = field(default_factory=PlanConf)
    kernels: KernelsConf = field(default_factory=KernelsConf)
    generation: GenerationConf = field(default_factory=GenerationConf)
    engine: EngineConf = field(default_factory=EngineConf)
    cluster: ClusterConf = field(default_factory=ClusterConf)
    slurm: SlurmConf = field(default_factory=SlurmConf)
    job: JobConf = field(default_factory=JobConf)


JOBS: dict[str, type[JobConf]] = {
    "generate": GenerateConf,
    "chat": ChatConf,
    "serve": ServeConf,
    "batch": BatchConf,
    "bench": BenchConf,
    "plan": PlanJobConf,
    "synth": SynthConf,
    "tiny": TinyConf,
    "doctor": DoctorConf,
    "prefetch": PrefetchConf,
}
"""Every job by its word, with the schema of its group."""

GROUPS = ("model", "plan", "kernels", "generation", "engine", "cluster", "slurm", "job", "preset")
"""Every group of choices, a folder of `conf/` each."""
