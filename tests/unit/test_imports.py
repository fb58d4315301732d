"""One-way imports: a module may import what stands above it in LAYERS, or beside it, and nothing below."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptoss_dist

PACKAGE = Path(gptoss_dist.__file__).parent
LAYERS = (
    ("collector", "errors", "log", "cache", "files", "output", "sse"),
    ("schema", "shapes", "hub_config", "devices", "staged"),
    ("checks", "complaints", "config", "call_keys"),
    ("plan", "memory", "ceilings", "limits"),
    ("launcher",),
    ("runtime",),
    ("kernels",),
    ("model", "harmony"),
    ("engine",),
    ("session", "calls"),
    ("jobs", "api", "server", "bench", "chat", "batch", "prefetch", "doctor"),
    ("help", "cli"),
    ("console",),
    ("__main__",),
)
HEAVY = ("torch", "transformers", "safetensors", "numpy", "openai_harmony", "accelerate", "huggingface_hub")
_LIGHT = [part for layer in LAYERS[: LAYERS.index(("launcher",)) + 1] for part in layer]
_LIGHT += ["help", "cli", "console", "__main__"]
NO_TORCH = tuple(f"gptoss_dist.{part}" for part in _LIGHT)


def modules() -> dict[str, Path]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    return next(level for level, names in enumerate(LAYERS) if part in names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, lazy: bool, typing: bool) -> Iterator[str]:
    """The modules that code imports; `lazy`: inside functions too, `typing`: for type checkers too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            assert child.module is not None
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield inner if inner in MODULES else child.module
        elif is_type_checking(child) and not typing:
            yield from (name for other in child.orelse for name in imports(other, lazy, typing))
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child, lazy, typing)


@functools.cache
def imported_by(module: str, *, lazy: bool = True, typing: bool = True) -> set[str]:
    return set(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), lazy, typing))


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "gptoss_dist" and name != "gptoss_dist"}


@functools.cache
def closure(module: str) -> set[str]:
    """Everything that importing `module` imports, before any function is called."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            parents = [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 1)]
            todo += [*imported_by(name, lazy=False, typing=False), *parents]
    return seen


def test_every_part_of_the_package_has_a_layer():
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert parts <= {part for layer in LAYERS for part in layer}
    assert len(MODULES) > 50


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_go_one_way(module):
    for name in ours(imported_by(module)):
        assert name in MODULES, f"{module} imports {name}, which is no module"
        assert layer_of(name) <= layer_of(module), f"{module} imports {name}, which stands below it"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("gptoss_dist.harmony")])
def test_harmony_stands_beside_the_model(module):
    for name in ours(imported_by(module)):
        assert name.startswith("gptoss_dist.harmony") or layer_of(name) == 0, f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("gptoss_dist.engine")])
def test_the_engine_knows_no_text(module):
    words = ("gptoss_dist.harmony", "openai_harmony", "gptoss_dist.model.tokenizer", "tokenizers")
    assert not [name for name in imported_by(module) | closure(module) if name.startswith(words)]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(NO_TORCH)])
def test_what_a_login_node_runs_imports_nothing_heavy(module):
    heavy = {name for name in closure(module) if name.split(".")[0] in HEAVY}
    assert not heavy, f"importing {module} imports {heavy}"


def test_the_package_itself_imports_nothing():
    assert closure("gptoss_dist") <= {"gptoss_dist", "__future__", "typing"}


def test_no_module_is_imported_in_a_circle():
    for module in MODULES:
        for name in imported_by(module, lazy=False, typing=False):
            assert module not in closure(name), f"{module} and {name} import each other"
