"""From `job.functions`, a file or a module, to functions and what the model reads of them.

The functions are those of `__all__`, else all that the module defines itself and whose names do not begin with `_`.
The model reads what transformers' `get_json_schema` makes of type hints and of a docstring in Google's style, with a
line for each argument.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gptoss_dist.batch.functions import Functions, described, raised_at
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.harmony.grammar_tools import validate_tools

_PREFIX = "gptoss_functions_"


def load_functions(given: str) -> Functions:
    """Import what `job.functions` names. Raises ConfigError naming what cannot be imported, or described."""
    where = f"job.functions={given}"
    module = _module(given, where)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, one in vars(module).items() if not name.startswith("_") and _is_own(one, module)]
    functions = {name: getattr(module, name, None) for name in names}
    if odd := [name for name, one in functions.items() if not inspect.isfunction(one)]:
        raise ConfigError(f"{where}: __all__ names {odd[0]}, which is no function there.")
    if not functions:
        raise ConfigError(f"{where}: there is no function in it. Names that begin with _ do not count.")
    known = {name: one for name, one in functions.items() if one is not None}
    return Functions(known, [_tool(where, name, one) for name, one in known.items()])


def _is_own(one: Any, module: ModuleType) -> bool:
    return inspect.isfunction(one) and one.__module__ == module.__name__


def _tool(where: str, name: str, function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        schema = dict(get_json_schema(function)["function"])
        schema.pop("return", None)
        tool = {"type": "function", "function": {**schema, "name": name}}
        validate_tools([tool])
    except Exception as error:  # noqa: BLE001 - its own two kinds, and whatever resolving a hint raises
        raise ConfigError(f"{where}: {name} cannot be described to the model: {described(error)}") from None
    return tool


def _module(given: str, where: str) -> ModuleType:
    is_file = given.endswith(".py")
    try:
        if not (user_path(given, "job.functions").is_file() if is_file else _is_found(given)):
            raise ConfigError(
                f"{where}: there is no such {'file' if is_file else 'module'}. A file ends in .py; a module is looked "
                f"for in this folder ({Path.cwd()}) and where Python looks."
            )
        return _of_file(user_path(given, "job.functions").resolve()) if is_file else importlib.import_module(given)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code
        raise ConfigError(f"{where}: cannot be imported: {described(error)}{raised_at(error)}.") from None


def _is_found(name: str) -> bool:
    """Whether there is a module of this name. Raises what its parent packages raise."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    _look_in(Path.cwd())
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return False
        raise


def _of_file(file: Path) -> ModuleType:
    """Imported once, however often it is asked for."""
    name = _PREFIX + str(file)
    if name in sys.modules:
        return sys.modules[name]
    _look_in(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _look_in(folder: Path) -> None:
    """Last of all, so that no file there takes the place of an installed module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
