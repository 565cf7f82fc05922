"""Low-rank changes in a MODEL that is sampled: beside its layers, as they were in training.

Nothing is added to the weights, so nothing is rounded and quantised weights serve as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch
from comfy.patcher_extension import PatcherInjection
from torch import Tensor

from ...imagic_core.finetune import add_product
from .sockets import Model

Products = Mapping[str, tuple[Tensor, Tensor]]
"""Path of a layer -> up [out, r], as often as it counts, and down [r, in x kernel]."""


class Bypass(PatcherInjection):
    """Puts products beside the layers of a MODEL when the host loads it, and takes them off."""

    def __init__(self, products: Products) -> None:
        """Take ordinary float32 tensors on the CPU."""
        super().__init__(self._inject, self._eject)
        self.products = products
        self.hooks: list[Any] = []

    def _inject(self, patcher: Model) -> None:
        self._eject(patcher)
        # A list of its own for each time, which a MODEL that is forgotten while loaded cleans up.
        self.hooks = hooks = []
        for path, (up, down) in self.products.items():
            layer = patcher.model.get_submodule(path)
            hooks.append(layer.register_forward_hook(_Product(up, down)))
        weakref.finalize(patcher, _remove, hooks)

    def _eject(self, _patcher: Model) -> None:
        _remove(self.hooks)


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()


class _Product:
    """A hook with copies of both matrices where and as its layer computes."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        self.stored = self.here = (up, down)

    def __call__(self, layer: torch.nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        up, down = self.here
        if up.dtype != y.dtype or up.device != y.device:
            # Ordinary tensors, which may take part in training, even where a sampler runs.
            with torch.inference_mode(False):
                self.here = up, down = self.stored[0].to(y), self.stored[1].to(y)
        return add_product(layer, args[0], y, up, down)


def with_products(model: Model, products: Products) -> Model:
    """A clone of MODEL with the products beside its layers."""
    clone = model.clone()
    if products:
        bypass = Bypass(products)
        # The host tells clones apart by these names alone.
        clone.set_injections(f"imagic {uuid4()}", [bypass])
    return clone
