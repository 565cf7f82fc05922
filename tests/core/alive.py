"""Counts the bytes that are alive at once, on any device and without a clock."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """What operations have made within it, and what of that was alive at once.

    Attributes:
        peak: the most bytes that were alive at once.
        large: the most tensors of at least ``size`` bytes that were alive at once.
    """

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size, self.peak, self.large = size, 0, 0
        self._now: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is(t)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if _is(one):
                self._add(one.untyped_storage(), given)
        self.peak = max(self.peak, sum(self._now.values()))
        self.large = max(self.large, sum(size >= self.size for size in self._now.values()))
        return made

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        name = storage._cdata
        if name not in given and name not in self._now:
            self._now[name] = storage.nbytes()
            weakref.finalize(storage, self._now.pop, name, None)


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
