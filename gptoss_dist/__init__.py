"""gpt-oss on many GPUs. `load` is the library's door; the command line's is `gptoss_dist.cli.main`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_dist.api import Model, Reply, load
    from gptoss_dist.harmony.options import PromptOptions

__version__ = "0.1.0"
__all__ = ["Model", "PromptOptions", "Reply", "load"]


def __getattr__(name: str) -> Any:
    """Import the library, and torch with it, when it is first asked for: `gptoss plan` needs neither."""
    if name in __all__:
        from gptoss_dist import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
