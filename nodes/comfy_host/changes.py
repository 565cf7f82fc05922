"""Changes applied to a loaded model in training, and taken off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...imagic_core.changes import Difference, LowRank
from .bypass import put_beside
from .in_place import Kept
from .rounding import rounded
from .sockets import Model


@contextmanager
def applied(patcher: Model, changes: Mapping[str, Difference | LowRank]) -> Iterator[None]:
    """Pass layers and weights through their changes in every forward."""
    with ExitStack() as undo:
        made, adds = Made(), False
        for key, change in changes.items():
            path, name = key.rsplit(".", 1)
            layer = patcher.model.get_submodule(path)
            change.to(patcher.load_device)
            if isinstance(change, LowRank):
                undo.callback(put_beside(layer, change))
            elif _is_as_used(layer, name, patcher.load_device):
                undo.enter_context(_replaced(layer, name, change))
            else:
                undo.enter_context(_added(layer, name, AsStored(change, key, made)))
                adds = True
        # Each tensor that autograd keeps passes them: only where a changed weight is among these.
        if adds:
            undo.enter_context(saved_tensors_hooks(made.pack, made.unpack))
        yield


def _is_as_used(layer: torch.nn.Module, name: str, device: torch.device) -> bool:
    """Whether a weight is stored in float32, so that nothing rounds it, and where it is used."""
    weight = getattr(layer, name)
    exact = weight.dtype == torch.float32 and type(weight.data) is Tensor
    return exact and weight.device == device


@contextmanager
def _replaced(layer: torch.nn.Module, name: str, change: Difference) -> Iterator[None]:
    """The changed weight in the place of the weight: neither a sum nor a copy in any pass."""
    weight = getattr(layer, name)
    with change.in_place_of(weight) as changed:
        layer._parameters[name] = changed
        try:
            yield
        finally:
            layer._parameters[name] = weight


@contextmanager
def _added(layer: torch.nn.Module, name: str, function: AsStored) -> Iterator[None]:
    """The function is one of those through which the host passes a weight in every forward."""
    functions = f"{name}_function"
    own, present = functions in vars(layer), getattr(layer, functions)
    function.stored = getattr(layer, name).dtype
    if not present:
        function.source = lambda: getattr(layer, name)
    setattr(layer, functions, [*present, function])
    try:
        yield
    finally:
        if own:
            setattr(layer, functions, present)
        else:
            delattr(layer, functions)


class Recipe(NamedTuple):
    """What stands for a changed weight, or a view of it, between the passes."""

    change: AsStored
    weight: Callable[[], Tensor]
    view: tuple[torch.Size, tuple[int, ...], Any]


class Made:
    """Changed weights, which autograd keeps as recipes: they are made anew in the backward pass."""

    def __init__(self) -> None:
        """None is made yet."""
        self.made: dict[int, tuple[weakref.ref[Tensor], AsStored, Callable[[], Tensor]]] = {}

    def add(self, changed: Tensor, change: AsStored, weight: Tensor) -> None:
        """Remember how a changed weight was made."""
        # The host hands over a copy, as large as what is spared here: better its source.
        source = change.source or (lambda: weight)
        again = partial(_cast, source, weight.device, weight.dtype)
        self.made[changed.untyped_storage().data_ptr()] = (weakref.ref(changed), change, again)

    def pack(self, tensor: Tensor) -> Kept | Recipe:
        """What autograd keeps of a tensor; by itself it would no longer see changes in place."""
        found = self.made.get(tensor.untyped_storage().data_ptr())
        if found is None or found[0]() is None:  # else another has come to lie there
            return Kept(tensor)
        return Recipe(*found[1:], (tensor.size(), tensor.stride(), tensor.storage_offset()))

    def unpack(self, kept: Kept | Recipe) -> Tensor:
        """The tensor for the backward pass.

        Raises:
            RuntimeError: it was changed in place.
        """
        if isinstance(kept, Kept):
            return kept.restore()
        with torch.no_grad():
            return kept.change.of(kept.weight()).as_strided(*kept.view)


def _cast(source: Callable[[], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    return source().to(device, dtype)


class AsStored:
    """Adds a difference as the returned MODEL will have it: rounded to the stored number format.

    The gradient passes straight through the rounding.
    """

    stored = torch.float32
    source: Callable[[], Tensor] | None = None
    """Gives the weight that comes in, where nothing else changes it before."""

    def __init__(self, change: Difference, key: str, made: Made) -> None:
        """Take the difference, the state dict key of its weight, and what remembers the result."""
        self.change, self.key, self.made = change, key, made

    def __call__(self, weight: Tensor) -> Tensor:
        """The changed weight, in the number format of ``weight``."""
        changed = self.of(weight)
        self.made.add(changed, self, weight)
        return changed

    def of(self, weight: Tensor) -> Tensor:
        """The same, as often as it is asked for."""
        changed = self.change(weight.float())
        if self.stored != torch.float32:
            exact = changed.detach()
            changed = changed + (rounded(exact, self.stored, self.key) - exact)
        return changed.to(weight.dtype)

    def move_to(self, device: torch.device) -> int:
        """The host moves its weight functions along with the model."""
        self.change.to(device)
        return 0
