"""What every part of the schema is: open while a run is composed, read-only from then on."""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any


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
