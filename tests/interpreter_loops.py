"""Lets Triton's interpreter run loops whose bounds are computed, beside a numpy that no longer allows for how it does.

The interpreter holds a scalar as an array of one element and takes its `int()`, which numpy refuses since 2.4. Import
this module, with TRITON_INTERPRET=1 set, before a kernel runs.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _with_scalars_as_numbers(tensor: Any, scope: Any) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _with_scalars_as_numbers
