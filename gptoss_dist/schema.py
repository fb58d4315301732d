"""The one schema of a run: what every key of `conf/` may hold.

The classes are structured configs of OmegaConf: plain mutable dataclasses with enums, `int | None` and lists, no torch.
`gptoss_dist.config` composes them once, checks them and calls `freeze`, after which nothing can be set any more.
No field holds a secret: tokens come from the environment only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any

from omegaconf import MISSING


class Dtype(Enum):
    """The number format of activations and of the weights that are not packed; `auto`: what the checkpoint says."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class AttentionPart(Enum):
    """How attention lies over the ranks of a replica: whole on each, or heads dealt out."""

    whole = "whole"
    tp = "tp"


class VocabularyPart(Enum):
    """How embedding and lm_head lie over the ranks: whole on each, lm_head alone in rows, or both in rows."""

    whole = "whole"
    head = "head"
    tp = "tp"


class ExpertPart(Enum):
    """How the experts lie over the ranks of a replica: whole everywhere, sliced in width, or whole ones dealt out."""

    whole = "whole"
    tp = "tp"
    ep = "ep"


class ExpertKernel(Enum):
    """What multiplies packed experts."""

    auto = "auto"
    reference = "reference"
    triton = "triton"
    cuda = "cuda"
    hub = "hub"


class Device(Enum):
    """Where the ranks compute; `auto`: GPUs if this machine shows any, else the CPU."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class Effort(Enum):
    """Reasoning effort, as gpt-oss was trained to read it in the harmony system message."""

    low = "low"
    medium = "medium"
    high = "high"


class Template(Enum):
    """How a conversation becomes tokens: by openai-harmony, by the tokenizer's chat template, or the bare text."""

    harmony = "harmony"
    tokenizer = "tokenizer"
    raw = "raw"


class SlurmLauncher(Enum):
    """What starts the ranks of a SLURM job."""

    torchrun = "torchrun"
    srun = "srun"
    accelerate = "accelerate"


class Backend(Enum):
    """Which engine runs the steps: the model's own forward, or ours over a paged cache; auto: ours on GPUs."""

    auto = "auto"
    transformers = "transformers"
    engine = "engine"


class BenchSuite(Enum):
    """Which loads are measured: the rows that the job's keys make, or a table of one, many and long ones."""

    rows = "rows"
    table = "table"


class BenchApi(Enum):
    """How a server is asked: by token ids, by a chat message, or by the first of both that it takes."""

    auto = "auto"
    completions = "completions"
    chat = "chat"


class BatchOrder(Enum):
    """In which order the records of a share are begun."""

    in_order = "in_order"
    longest_first = "longest_first"


class Staging(Enum):
    """What `gptoss prefetch` brings: one kind of thing, or all that the model needs."""

    all = "all"
    weights = "weights"
    kernels = "kernels"
    vocab = "vocab"


class Node:
    """A part of the schema that `freeze` makes read-only, with all that hangs below it, lists and tables too."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, unless the node is frozen."""
        if self.__dict__.get("_frozen", False):
            raise AttributeError(f"{type(self).__name__}.{name}: the configuration is frozen once it is checked")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete a field, which no node allows."""
        raise AttributeError(f"{type(self).__name__}.{name}: a key of the configuration cannot be deleted")

    def freeze(self) -> None:
        """Make this node and every node below it read-only; a list becomes a tuple, a table a view of itself."""
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, Node):
                value.freeze()
            elif isinstance(value, list):
                self.__dict__[one.name] = tuple(value)
            elif isinstance(value, dict):
                self.__dict__[one.name] = MappingProxyType(dict(value))
        self.__dict__["_frozen"] = True


@dataclass
class ModelConf(Node):
    """Which weights, and how they are read."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = None
    dtype: Dtype = Dtype.auto
    dequantize: bool = False


@dataclass
class PlanConf(Node):
    """How the model lies over the ranks. World size = dp × tp; `tp` counts the ranks of one replica."""

    name: str = MISSING
    dp: int | None = 1
    tp: int | None = None
    attention: AttentionPart = AttentionPart.whole
    vocabulary: VocabularyPart = VocabularyPart.whole
    experts: ExpertPart = ExpertPart.whole
    rules: dict[str, str] = field(default_factory=dict)
    device_map: bool = False
    auto: bool = False


@dataclass
class KernelsConf(Node):
    """What computes attention and the experts. `attention`: auto, eager, or the name of a kernel on the hub."""

    name: str = MISSING
    attention: str = "auto"
    experts: ExpertKernel = ExpertKernel.auto


@dataclass
class GenerationConf(Node):
    """How tokens are chosen. `temperature=0` is greedy; without a `seed` rank 0 draws one and says it.

    `max_new_tokens`: null leaves it to the job: chat and batch go on to the answer's end or the model's context.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    reasoning_effort: Effort = Effort.medium


FEWEST_STEP_TOKENS = 2048
"""Tokens of a step where none are asked for and memory is shared (a CPU) or scarce."""


@dataclass
class EngineConf(Node):
    """The paged engine: its cache and its steps. `cache_tokens`: null takes what is free; `graphs`: on GPUs only.

    `step_tokens`: null lets the engine choose by device and memory (`engine.size.chosen_step`). `mixed_step_tokens`: of
    a step that also decodes, so that those who wait for their next token wait less for the prompts of others.
    """

    name: str = MISSING
    page_size: int = 16
    cache_tokens: int | None = None
    memory_fraction: float = 0.9
    step_tokens: int | None = None
    mixed_step_tokens: int | None = None
    max_running: int = 64
    script: str | None = None
    graphs: bool = True

    @property
    def tokens_a_step(self) -> int:
        """`step_tokens`, or the fewest that an engine chooses: a step holds a token of every running request."""
        return max(FEWEST_STEP_TOKENS, self.max_running) if self.step_tokens is None else self.step_tokens


@dataclass
class ClusterConf(Node):
    """The machines: device, how long a collective may take, how often the ranks compare what they generated."""

    name: str = MISSING
    staged: str | None = None
    device: Device = Device.auto
    timeout_s: float = 600.0
    agree_every: int = 32
    log_level: str = "info"


@dataclass
class SlurmConf(Node):
    """What `gptoss slurm JOB …` asks SLURM for; null leaves it to the cluster."""

    name: str = MISSING
    launcher: SlurmLauncher = SlurmLauncher.torchrun
    nodes: int = 1
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    job_name: str = "gptoss"
    logs: str = "logs"
    log_per_rank: bool = True
    array: int | None = None
    at_once: int | None = None
    requeue: bool = False
    signal_s: int = 120
    container: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    stage: str | None = None
    options: list[str] = field(default_factory=list)
    submit: bool = False
    test_only: bool = False


@dataclass
class JobConf(Node):
    """What every job has: its name."""

    name: str = MISSING


@dataclass
class GenerateConf(JobConf):
    """One answer. The prompt is `prompt=…`, or `file` (`-`: standard input), or `messages` (a JSON file)."""

    file: str | None = None
    messages: str | None = None
    system: str | None = None
    developer: str | None = None
    tools: str | None = None
    builtin_tools: list[str] = field(default_factory=list)
    date: str | None = None
    template: Template = Template.harmony
    stream: bool = True
    show_analysis: bool = True


@dataclass
class PlanJobConf(JobConf):
    """What a plan gives each rank, without a GPU and without the weights."""

    context: int = 8192
    ranks: int | None = None
    gpu: str | None = None
    streams: list[int] = field(default_factory=lambda: [1, 64])
    plot: str | None = None


@dataclass
class SynthConf(JobConf):
    """A random checkpoint of real shapes."""

    size: str = "tiny"
    out: str | None = None
    seed: int = 0
    layers: int | None = None
    experts: int | None = None
    dense: bool = False


@dataclass
class TinyConf(JobConf):
    """The trained stand-in."""

    force: bool = False


@dataclass
class PrefetchConf(JobConf):
    """What to stage for a machine without a network, and where."""

    what: Staging = Staging.all
    out: str | None = None
    torch: str | None = None
    workers: int = 8


@dataclass
class DoctorConf(JobConf):
    """What is looked at before a run; `hash` reads every staged file whole."""

    hash: bool = False


@dataclass
class ChatConf(JobConf):
    """A conversation in the terminal, with the model on these ranks, or with a server at `target`."""

    target: str | None = None
    target_model: str | None = None
    system: str | None = None
    tools: str | None = None
    date: str | None = None
    show_analysis: bool = True


@dataclass
class ServeConf(JobConf):
    """The OpenAI API over HTTP, on rank 0. API keys come from GPTOSS_API_KEYS in the environment."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    any_model: bool = False
    date: str | None = "today"
    max_waiting: int = 512
    max_body_mb: float = 8.0
    max_behind: int = 16384
    store_responses: int = 1024
    store_mb: float = 256.0
    drain_s: float = 25.0
    allow_anonymous: bool = False
    cors_origins: list[str] = field(default_factory=list)
    access_log: bool = False


@dataclass
class BenchConf(JobConf):
    """A load, measured: on the engine here, or with `target` on a server that speaks OpenAI's API."""

    suite: BenchSuite = BenchSuite.rows
    streams: list[int] = field(default_factory=lambda: [1])
    input_tokens: int = 1024
    output_tokens: int = 1024
    rounds: int = 2
    first_tokens: int = 16
    requests: int | None = None
    rate: float | None = None
    prefill: list[str] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    context_output_tokens: int = 256
    warmup_tokens: int = 16
    seed: int = 0
    plot: str | None = None
    target: str | None = None
    target_model: str | None = None
    endpoint: BenchApi = BenchApi.auto
    vocabulary: int | None = None
    soak_s: float | None = None
    sample_s: float = 5.0
    cancel_share: float = 0.1
    growth_mb_per_min: float = 20.0


@dataclass
class BatchConf(JobConf):
    """Many prompts in files. `input`: a text, or a list of texts."""

    input: Any = None
    column: str | None = None
    output: str | None = None
    order: BatchOrder = BatchOrder.in_order
    share: int | None = None
    window: int | None = None
    worker: str | None = None
    stale_s: float = 60.0
    grace_s: float = 20.0
    date: str | None = None
    functions: str | None = None
    rounds: int = 8
    function_s: float = 60.0
    keep_parts: bool = False


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
