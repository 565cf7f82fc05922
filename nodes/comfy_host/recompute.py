"""Blocks that keep nothing for the backward pass but their inputs, and are passed once more in it.

PyTorch's own checkpoints keep inputs and inner tensors by reference, and give wrong gradients,
without a word, where a block changes them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from .in_place import Kept, copied_before_change, mapped


@contextmanager
def recomputed(network: torch.nn.Module) -> Iterator[None]:
    """Recompute each block of the network in the backward pass instead of keeping it."""
    copies = _Copies()
    # Some have a forward of their own, as compiled blocks do.
    before = [(block, vars(block).get("forward")) for block in _blocks(network)]
    for block, _ in before:
        block.forward = _Recomputed(block.forward, copies)
    try:
        yield
    finally:
        for block, own in before:
            if own is None:
                del block.forward
            else:
                block.forward = own


def _blocks(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    containers = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)
    for child in network.children():
        if isinstance(child, containers):
            yield from _blocks(child)
        else:
            yield child


class _Copies:
    """Copies of tensors as they are now; what goes into many blocks is copied once."""

    def __init__(self) -> None:
        self.made = WeakTensorKeyDictionary()

    def __call__(self, tensor: Tensor) -> Tensor:
        version = 0 if tensor.is_inference() else tensor._version
        found: tuple[int, Tensor] | None = self.made.get(tensor)
        if found is None or found[0] != version:
            copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            self.made[tensor] = found = (version, copy)
        return found[1]


class _Recomputed:
    """The forward of one block."""

    def __init__(self, forward: Callable[..., Any], copies: _Copies) -> None:
        self.forward, self.copies = forward, copies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        inputs = mapped(self.copies, (args, kwargs))
        # Some attention patches draw their tiles from PyTorch's generator.
        random = torch.get_rng_state()
        count = 0
        again: dict[int, Kept] = {}

        def pack(_tensor: Tensor) -> int:
            nonlocal count
            count += 1
            return count - 1

        def unpack(index: int) -> Tensor:
            if index not in again:
                kept = self._kept_of(inputs, random)
                if len(kept) != count:
                    raise RuntimeError(
                        f"{self.forward} keeps {count} tensors, and {len(kept)} when recomputed"
                    )
                again.update(enumerate(kept))
            return again.pop(index).restore()

        with saved_tensors_hooks(pack, unpack):
            return self.forward(*args, **kwargs)

    def _kept_of(
        self, inputs: tuple[tuple[Any, ...], dict[str, Any]], random: Tensor
    ) -> list[Kept]:
        """What autograd keeps of a pass on ``inputs``, which stay as they are."""
        kept: list[Kept] = []
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(random)
            args, kwargs = mapped(torch.clone, inputs)
            with copied_before_change(kept):
                self.forward(*args, **kwargs)
        return kept
