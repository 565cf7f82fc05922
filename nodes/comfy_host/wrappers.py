"""Functions that other nodes have put around the MODEL's pass, as its sampling would call them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .sockets import Model

KINDS = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
"""Those around a single pass. All others are around a sampling or its guidance."""

_ONLY_FASTER = re.compile(r"cache|compile", re.IGNORECASE)


@dataclass(frozen=True)
class Wrappers:
    """What is around a pass.

    Attributes:
        function: the ``model_function_wrapper``, if any.
        by_kind: kind -> key -> functions, for ``transformer_options``.
    """

    function: Callable[..., Tensor] | None
    by_kind: dict[str, dict[str, list[Callable[..., Any]]]]

    def names(self) -> list[str]:
        """What people may know them by."""
        inner = [
            _name(key, one)
            for keys in self.by_kind.values()
            for key, ones in keys.items()
            for one in ones
        ]
        return inner if self.function is None else [_name(None, self.function), *inner]


def training_wrappers(patcher: Model) -> Wrappers:
    """The wrappers of a MODEL but those that only cache or compile, which change no result."""
    options = patcher.model_options
    present = comfy.patcher_extension.merge_nested_dicts(
        options.get("transformer_options", {}).get("wrappers", {}), patcher.wrappers
    )
    by_kind = {
        kind: {
            key: kept
            for key, ones in present.get(kind, {}).items()
            if (kept := [one for one in ones if not _ONLY_FASTER.search(_name(key, one))])
        }
        for kind in KINDS
    }
    function = options.get("model_function_wrapper")
    if function is not None and _ONLY_FASTER.search(_name(None, function)):
        function = None
    return Wrappers(function, by_kind)


def _name(key: str | None, wrapper: Callable[..., Any]) -> str:
    named = wrapper if hasattr(wrapper, "__qualname__") else type(wrapper)
    # Of a node pack's module, whose name is its path, the end.
    module = re.split(r"[./\\]", getattr(named, "__module__", None) or "")[-1]
    return ".".join(filter(None, (key, module, named.__qualname__)))
