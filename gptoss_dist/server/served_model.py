"""What is served: its names, its limits, and what a request gets that does not say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.model import ModelConf
from gptoss_dist.server.api_error import ApiError


@dataclass(frozen=True)
class ServedModel:
    """The one model of a server. `name` comes first among `aliases`, by each of which a request may call it."""

    name: str
    aliases: tuple[str, ...]
    any_model: bool
    context: int
    vocabulary: int
    created: int
    """Seconds since 1970."""
    fingerprint: str
    generation: GenerationConf
    date: str | None
    """`today`, a date such as 2025-06-28, or None: what the model is told of the current date."""

    def check_name(self, name: str | None) -> str:
        """The name that the answer carries. Raises ApiError (404) for a model that is not served here."""
        if name is None:
            return self.name
        if name in self.aliases or self.any_model:
            if not name.isprintable() or len(name) > 256:
                raise ApiError(400, "model: a name of up to 256 printable characters is needed.", param="model")
            return name
        raise ApiError(
            404,
            f"The model {name!r} does not exist here. This server has {self.name!r}; job.any_model=true accepts "
            "every name.",
            param="model",
            code="model_not_found",
        )


def names_of(model: ModelConf, wanted: str | None) -> tuple[str, ...]:
    """The names of the served model: the one asked for, else the hub's name or the folder's; then the choice's."""
    path = Path(model.path)
    by_path = path.resolve().name if path.is_dir() else model.path
    names = [wanted or by_path, by_path, model.name]
    return tuple(dict.fromkeys(names))


def fingerprint_of(*parts: object) -> str:
    """A short text that differs where the backend's configuration does."""
    return "fp_" + hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=5).hexdigest()
