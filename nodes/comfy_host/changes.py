"""Changes applied to a loaded model in training, and taken off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...imagic_core.finetune import Difference, LowRank
from .rounding import rounded
from .sockets import Model


@contextmanager
def applied(patcher: Model, changes: Mapping[str, Difference | LowRank]) -> Iterator[None]:
    """Pass layers and weights through their changes in every forward."""
    with ExitStack() as undo:
        for key, change in changes.items():
            path, name = key.rsplit(".", 1)
            layer = patcher.model.get_submodule(path)
            change.to(patcher.load_device)
            if isinstance(change, LowRank):
                undo.callback(layer.register_forward_hook(_beside(change)).remove)
            else:
                undo.enter_context(_added(layer, name, AsStored(change, key)))
        yield


def _beside(change: LowRank) -> Any:
    def hook(layer: torch.nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return change(layer, args[0], y)

    return hook


@contextmanager
def _added(layer: torch.nn.Module, name: str, function: AsStored) -> Iterator[None]:
    """The function is one of those through which the host passes a weight in every forward."""
    functions = f"{name}_function"
    own, present = functions in vars(layer), getattr(layer, functions)
    function.stored = getattr(layer, name).dtype
    setattr(layer, functions, [*present, function])
    try:
        yield
    finally:
        if own:
            setattr(layer, functions, present)
        else:
            delattr(layer, functions)


class AsStored:
    """Adds a difference as the returned MODEL will have it: rounded to the stored number format.

    The gradient passes straight through the rounding.
    """

    stored = torch.float32

    def __init__(self, change: Difference, key: str) -> None:
        """Take the difference and the state dict key of its weight."""
        self.change, self.key = change, key

    def __call__(self, weight: Tensor) -> Tensor:
        """The changed weight, in the number format of ``weight``."""
        changed = self.change(weight.float())
        if self.stored != torch.float32:
            exact = changed.detach()
            changed = changed + (rounded(exact, self.stored, self.key) - exact)
        return changed.to(weight.dtype)

    def move_to(self, device: torch.device) -> int:
        """The host moves its weight functions along with the model."""
        self.change.to(device)
        return 0
