"""Kernels of the hub through the `kernels` package: which versions belong together, and is a kernel here?"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any

from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION, is_kernels_available

EXPERTS = "kernels-community/gpt-oss-triton-kernels"


def problem_of(name: str) -> str | None:
    """Why the hub's kernel `name` cannot be used here, or None. Loads it, from a stage or from the hub."""
    if importlib.util.find_spec("kernels") is None:
        return "the package `kernels` is not installed (pip install 'gptoss-dist[hub]')"
    if not is_kernels_available():
        import transformers

        return (
            f"transformers {transformers.__version__} wants kernels >= {KERNELS_MIN_VERSION}, < {KERNELS_MAX_VERSION}, "
            f"and {metadata.version('kernels')} is installed"
        )
    try:
        load(name)
    except Exception as error:  # noqa: BLE001  whatever a downloaded kernel raises while it loads is the answer
        return f"{name} could not be loaded ({' '.join(str(error).split())[:200]})"
    return None


def load(name: str) -> Any:
    """The module of a hub kernel: LOCAL_KERNELS first, then the cache, then the hub."""
    from transformers.integrations.hub_kernels import get_kernel

    return get_kernel(name, version=1)
