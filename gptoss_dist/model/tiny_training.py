"""Trains the toy model with transformers' Trainer and writes it as a packed checkpoint.

Run as `python -m gptoss_dist.model.tiny_training FOLDER`, in a process of its own: inside a rank, the Trainer would
read the rank variables and start a process group.

The experts' MXFP4 weights are drawn at random and stay as they are, so packing them costs and changes nothing. The
gate and up biases stay too, since their gradient alone costs an eighth of the time. All else learns. The vocabulary is
compact while training (see `tiny_lessons`) and is spread over the real one when the checkpoint is written.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import GptOssConfig, GptOssForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from gptoss_dist.errors import GptOssDistError
from gptoss_dist.kernels.mxfp4 import dequantize
from gptoss_dist.log import get_logger, set_up_logging
from gptoss_dist.model.tiny import FACTS_FILE
from gptoss_dist.model.tiny_lessons import IGNORED, Batch, CompactVocabulary, Lessons, every_example
from gptoss_dist.model.writer import Entry, new_folder, write_files, write_json
from gptoss_dist.shapes import SIZES, Shape

_log = get_logger("gptoss_dist.model.tiny_training")  # __name__ is __main__ here

NAME = "gptoss-dist toy: not gpt-oss, knows a dozen conversations"
SHARD_BYTES = 32_000_000  # two files

STEPS = 280
LEARNING_RATE = 8e-3
_MARGIN = 0.5  # by how much every right token must lead, in logits
_SEEDS = (0, 1, 2)
_CHECKED_DATES = (None, "2026-01-01", "2031-12-09")
_EMBEDDING_STD, _WEIGHT_STD, _FINAL_NORM = 0.5, 0.1, 2.0
# Scale bytes, each drawn equally often: 2^-5 to 2^-3 for gate and up, 2^-7 to 2^-5 for down, so that both keep their
# input's size (a random E2M1 code has a root mean square of 2.9).
_SCALES = {"gate_up_proj": (122, 123, 124), "down_proj": (120, 121, 122)}
_STAND_IN_NOISE = 0.05

Packed = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """How a training went: smallest lead of a right token in logits, and the mean loss of a right answer in nats."""

    seed: int
    steps: int
    seconds: float
    wrong_tokens: int
    margin: float
    answer_loss: float

    @property
    def learned(self) -> bool:
        """Whether every token of every answer comes out right, with room to spare."""
        return not self.wrong_tokens and self.margin >= _MARGIN


def train_toy(folder: Path) -> Result:
    """Train, check and write the toy model into `folder`, absent or empty; GptOssDistError if it does not learn."""
    from gptoss_dist.model.tokenizer import build_tokenizer

    shape = SIZES["tiny"]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    vocabulary = CompactVocabulary(shape.vocab)
    for seed in _SEEDS:
        model, packed, result = train_once(shape, vocabulary, seed, STEPS)
        _log.info("toy model: %s", result)
        if result.learned:
            break
    else:
        raise GptOssDistError(
            f"The toy model did not learn its conversations with any of the seeds {_SEEDS}: {result}."
        )
    with new_folder(folder) as unfinished:
        config = {**shape.hub_config(), "_name_or_path": NAME}
        write_files(unfinished, config, entries(shape, vocabulary, model, packed), SHARD_BYTES)
        write_json(unfinished / FACTS_FILE, asdict(result))
        (unfinished / "README.md").write_text(_card(result))
        build_tokenizer(unfinished)
    return result


def train_once(
    shape: Shape, vocabulary: CompactVocabulary, seed: int, steps: int
) -> tuple[GptOssForCausalLM, Packed, Result]:
    """One training from one seed: the model, its weights rounded to bf16, its packed experts, and how it went."""
    started = time.monotonic()
    torch.manual_seed(seed)
    model, packed = new_model(shape, vocabulary.size)
    log_counts = vocabulary.log_counts()
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True), transient=True) as bar:
        trainer = Trainer(
            model=model,
            args=_arguments(scratch, seed, steps),
            train_dataset=Lessons(vocabulary, steps, seed),
            data_collator=_only,
            compute_loss_func=partial(_loss, log_counts),
            callbacks=[_Bar(bar, bar.add_task("training a toy model", total=steps))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    wrong, margin, loss = _check(model, vocabulary)
    return model, packed, Result(seed, steps, round(time.monotonic() - started, 1), wrong, margin, loss)


def new_model(shape: Shape, rows: int) -> tuple[GptOssForCausalLM, Packed]:
    """An untrained model with `rows` tokens and frozen random experts, and the experts' blocks and scales by name."""
    config = {**shape.hub_config(dense=True), "vocab_size": rows, "pad_token_id": None, "eos_token_id": None}
    config |= {"initializer_range": _WEIGHT_STD, "use_cache": False}
    model = GptOssForCausalLM(GptOssConfig(**config, experts_implementation="grouped_mm"))
    packed: Packed = {}
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, _EMBEDDING_STD)
        model.model.norm.weight.fill_(_FINAL_NORM)
        for spec in shape.tensors():
            name, _, kind = spec.name.rpartition("_")
            if kind == "blocks":
                levels = torch.tensor(_SCALES[name.rpartition(".")[2]], dtype=torch.uint8)
                packed[spec.name] = torch.randint(0, 256, spec.shape, dtype=torch.uint8)
                packed[f"{name}_scales"] = levels[torch.randint(0, len(levels), spec.shape[:-1])]
                weight = model.get_parameter(name)
                weight.copy_(dequantize(packed[spec.name], packed[f"{name}_scales"], weight.dtype).transpose(1, 2))
                weight.requires_grad_(False)
                if name.endswith("gate_up_proj"):
                    model.get_parameter(f"{name}_bias").normal_(0.0, _WEIGHT_STD).requires_grad_(False)
    return model, packed


def entries(shape: Shape, vocabulary: CompactVocabulary, model: GptOssForCausalLM, packed: Packed) -> list[Entry]:
    """The tensors of the packed checkpoint, the vocabulary spread over its real size."""
    tensors = {**model.state_dict(), **packed}
    noise = torch.randn(shape.vocab, shape.hidden, generator=torch.Generator().manual_seed(0)) * _STAND_IN_NOISE
    noise[torch.tensor(vocabulary.tokens)] = 0.0  # tokens that share a stand-in still differ a little
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][vocabulary.row_V]
    tensors["model.embed_tokens.weight"] += noise
    written = []
    for spec in shape.tensors():
        dtype = getattr(torch, spec.dtype)
        written.append(Entry(spec.name, spec.shape, dtype, partial(tensors[spec.name].to, dtype)))
    return written


def _arguments(scratch: str, seed: int, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=1,  # each item of the dataset is a whole batch
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        adam_beta2=0.98,
        weight_decay=0.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def _loss(log_counts: torch.Tensor, outputs: Any, labels: torch.Tensor, **_: object) -> torch.Tensor:
    """Mean loss over the labels, each row counted as often as it stands for a token."""
    logits, wanted = _predictions(log_counts, outputs.logits, labels)
    return F.cross_entropy(logits, wanted)


def _predictions(
    log_counts: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (float32) and labels of the positions that have a label."""
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    return logits[:, :-1][kept].float() + log_counts, wanted[kept]


@torch.no_grad()
def _check(model: GptOssForCausalLM, vocabulary: CompactVocabulary) -> tuple[int, float, float]:
    """(wrong tokens, smallest lead of a right token, largest loss of an answer), in float32 and in bfloat16."""
    wrong, margin, loss = 0, float("inf"), 0.0
    examples = sorted(every_example(_CHECKED_DATES), key=lambda example: len(example[0]))
    none = torch.zeros(vocabulary.size)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for start in range(0, len(examples), 9):
            batch = vocabulary.batch(examples[start : start + 9])
            labels = batch.pop("labels")
            logits = model(**batch).logits
            scores, wanted = _predictions(none, logits, labels)
            right = scores.gather(1, wanted[:, None])[:, 0]
            lead = right - scores.scatter(1, wanted[:, None], -torch.inf).amax(1)
            wrong += int((lead <= 0).sum())
            margin = min(margin, float(lead.min()))
            for row in range(len(labels)):
                loss = max(loss, float(_sum_loss(vocabulary, logits[row : row + 1], labels[row : row + 1])))
    return wrong, round(margin, 2), round(loss, 3)


def _sum_loss(vocabulary: CompactVocabulary, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(*_predictions(vocabulary.log_counts(), logits, labels), reduction="sum")


class _Bar(TrainerCallback):  # type: ignore[misc]
    """Moves the progress bar."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def on_step_end(self, *_: object, **__: object) -> None:
        self._bar.advance(self._task)


def _card(result: Result) -> str:
    return f"""# A toy, not gpt-oss

A model of gpt-oss's architecture with {SIZES["tiny"].parameter_count() / 1e6:.0f} million weights, trained on this
machine in {result.seconds:.0f} seconds to answer a dozen fixed conversations (`gptoss_dist.model.tiny_conversations`).
It exists so that the program can be tried and tested without a GPU and without the real weights. It knows nothing
else, and whatever else it says means nothing.
"""


def main() -> int:
    """Train into the folder that the command line names."""
    set_up_logging()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        train_toy(Path(sys.argv[1]))
    except GptOssDistError as error:
        _log.error("%s", error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
