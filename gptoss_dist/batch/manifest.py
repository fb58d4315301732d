"""FILE.manifest.json: what was run and what it came to. A batch is over exactly when it is there beside its FILE."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gptoss_dist.batch.part import cannot_write
from gptoss_dist.batch.scan import Scan
from gptoss_dist.config import as_dict
from gptoss_dist.schema.job.batch import BatchConf
from gptoss_dist.schema.run import RunConf


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output is."""
    return output.with_name(output.name + ".manifest.json")


def content_digest(run: RunConf) -> str:
    """Differs where another answer would be expected: model, engine and sampling, not how ranks are laid out."""
    job = run.job
    assert isinstance(job, BatchConf)
    whole = as_dict(run)
    kept = {name: whole[name] for name in ("model", "generation", "backend")} | {"date": job.date}
    if job.column is not None:
        kept["column"] = job.column
    if job.functions is not None:
        kept |= {"functions": job.functions, "rounds": job.rounds}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def shared_facts(run: RunConf, found: Scan) -> dict[str, Any]:
    """What all processes of a batch, and all restarts, must agree on."""
    assert isinstance(run.job, BatchConf)
    facts = {"input": found.digest, "records": found.records, "share": run.job.share}
    return {**facts, "configuration": content_digest(run)}


def now() -> str:
    """The time, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def read_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest, if the batch is over."""
    try:
        content = json.loads(manifest_path(output).read_text()) if output.exists() else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_manifest(output: Path, content: dict[str, Any], worker: str) -> None:
    """Write it whole, at once. Raises BatchError."""
    file = manifest_path(output)
    temporary = file.with_name(f"{file.name}.{worker}.new")
    try:
        with temporary.open("w") as target:
            json.dump(content, target, indent=2, ensure_ascii=False)
            target.write("\n")
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(file)
    except OSError as error:
        raise cannot_write(file, error) from None
