"""`model=tiny`: a toy with gpt-oss's architecture, trained on this machine once and kept in the cache.

The folder is named after a digest of the code that makes it: a change of the conversations, the training or the format
trains a new one, a change of comments does not.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import gptoss_dist
from gptoss_dist.cache import cache_folder
from gptoss_dist.errors import CheckpointError
from gptoss_dist.harmony.vocab import prefetch_vocabulary
from gptoss_dist.log import get_logger

_log = get_logger(__name__)

_PACKAGE = Path(gptoss_dist.__file__).parent
_SOURCES = (
    "harmony/chat_template.jinja",
    "harmony/conversation.py",
    "harmony/messages.py",
    "harmony/options.py",
    "harmony/tool_schema.py",
    "harmony/tool_types.py",
    "harmony/tools.py",
    "kernels/mxfp4.py",
    "shapes.py",
    "model/tiny_conversations.py",
    "model/tiny_lessons.py",
    "model/tiny_training.py",
    "model/tokenizer.py",
    "model/writer.py",
)
FACTS_FILE = "toy.json"
"""In the toy's folder: how its training went."""
_LONGEST_WAIT_S = 900.0
# What launchers set for their ranks: the training is a process of its own, and no rank.
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "OMP_NUM_THREADS")
# Waiting threads sleep, and glibc keeps freed memory instead of returning it to the kernel at every step.
_QUICK = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
_RANK_PREFIXES = ("MASTER_", "TORCHELASTIC_", "ACCELERATE_", "SLURM_", "PMI_", "OMPI_")


def tiny_checkpoint(force: bool = False) -> Path:
    """The folder of the toy model; trains it first (about a minute on two cores) if there is none, or if `force`.

    Of several processes one trains and the others wait. Raises CheckpointError if it could not be trained.
    """
    folder = tiny_folder()
    if force or not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock", timeout=_LONGEST_WAIT_S):
                if force or not folder.exists():
                    _train(folder)
        except Timeout as error:
            raise CheckpointError(
                f"Another process has been training the toy model for {_LONGEST_WAIT_S:.0f} s. If none is, "
                f"remove {folder}.lock; or set GPTOSS_CACHE to another folder."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be made: {error.strerror}. Set GPTOSS_CACHE to a folder that can be written."
            ) from error
    _log.info("model=tiny is a toy, not gpt-oss: it knows a dozen conversations (%s)", folder)
    return folder


def tiny_folder() -> Path:
    """Where the toy model of these sources is kept, trained or not."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(f"{name}\0{_without_comments(_PACKAGE / name)}\0".encode())
    return cache_folder() / f"tiny-{digest.hexdigest()[:12]}"


def tiny_facts(folder: Path) -> dict[str, Any]:
    """How the training of the toy in `folder` went: seed, steps, seconds, wrong_tokens, margin, answer_loss."""
    facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text())
    return facts


def training_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for training: no launcher's variables, and what makes it quick where others compute too."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _RANK_VARIABLES and not name.startswith(_RANK_PREFIXES)
    }
    paths = [str(_PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    return {**kept, **_QUICK, "PYTHONPATH": os.pathsep.join(paths)}


def _without_comments(path: Path) -> str:
    """A source file without comments, docstrings and layout; other files as they are."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(statement: ast.AST) -> bool:
    """Whether a statement is a bare string: a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _train(folder: Path) -> None:
    """Train beside the folder, then put the new toy in its place."""
    prefetch_vocabulary()
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    _log.info("training the toy model, once: about a minute on two CPU cores")
    status = _run([sys.executable, "-m", "gptoss_dist.model.tiny_process", str(fresh)])
    if status:
        raise CheckpointError(
            f"The toy model could not be trained (exit status {status}); the reason is above. "
            "Or name a checkpoint with model.path=FOLDER."
        )
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _run(command: list[str]) -> int:
    """Run the training; its exit status. It ends with this process, and Ctrl-C reaches this process alone.

    Its progress goes to standard error; standard output is for answers.
    """
    started = subprocess.Popen(
        command,
        env=training_environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return started.wait()
    finally:
        started.kill()
        started.wait()
        assert started.stdin is not None
        started.stdin.close()
