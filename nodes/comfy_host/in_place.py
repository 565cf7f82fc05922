"""Networks that change tensors in place which autograd has kept for the backward pass.

Sampling does not mind; autograd refuses it, and recomputed blocks would give wrong gradients. Here
what was kept is copied right before it is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


class Kept:
    """A tensor that autograd has kept, as it was then."""

    def __init__(self, tensor: Tensor) -> None:
        """Keep it without what it was computed from, which holds this in turn."""
        self.tensor = tensor.detach()
        self.version = self.tensor._version

    def copy(self) -> None:
        """No longer share the memory that is about to change."""
        self.tensor = self.tensor.clone()
        self.version = self.tensor._version

    def restore(self) -> Tensor:
        """The tensor for the backward pass.

        Raises:
            RuntimeError: it was changed in a way that nobody saw.
        """
        if self.tensor._version != self.version:
            raise RuntimeError("what the backward pass needs was modified by an inplace operation")
        return self.tensor


@contextmanager
def copied_before_change(kept: list[Kept] | None = None) -> Iterator[None]:
    """Let a forward pass change in place what autograd keeps of it.

    Args:
        kept: gets all that is kept, in order.
    """
    watch = _Watch()

    def pack(tensor: Tensor) -> Kept:
        one = Kept(tensor)
        watch.kept.setdefault(_storage(tensor), WeakSet()).add(one)
        if kept is not None:
            kept.append(one)
        return one

    with saved_tensors_hooks(pack, Kept.restore), watch:
        yield


class _Watch(TorchDispatchMode):
    """Sees every operation before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, WeakSet[Kept]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed = args[i] if i < len(args) else kwargs.get(argument.name)
                for tensor in changed if isinstance(changed, list | tuple) else [changed]:
                    if isinstance(tensor, Tensor):
                        for one in self.kept.pop(_storage(tensor), ()):
                            one.copy()
        # A tensor of a class that only calls itself otherwise, as GGUF's, makes all results of it.
        with nullcontext() if types else torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    # The memory itself: views of it at any place count, and so do weights that have no address.
    return tensor.untyped_storage()._cdata


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with ``change`` of every tensor in it, at any depth of lists and dictionaries."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(change, v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(change, v) for v in value)
    return value
