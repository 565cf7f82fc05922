"""Low-rank changes beside the layers of a network, in training and in a MODEL that is sampled.

Nothing is added to the weights, so nothing is rounded and quantised weights serve as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.patcher_extension import PatcherInjection
from torch import Tensor

from ...imagic_core.changes import add_product
from .sockets import Model

Product = Callable[[torch.nn.Module, Tensor, Tensor], Tensor]
"""What becomes of y = layer(x), from layer, x and y."""

Matrices = Mapping[str, tuple[Tensor, Tensor]]
"""Path of a layer -> up [out, r], as often as it counts, and down [r, in x kernel]."""


def put_beside(layer: torch.nn.Module, product: Product) -> Callable[[], None]:
    """Change what a layer gives; returns what takes the change off, whatever else came or went.

    A forward of the layer's own, and no hook: torch.compile does not see that a hook came.
    """
    entry = [product]
    inner, own, entries = _beside(layer)
    _put(layer, inner, own, [*entries, entry])

    def take_off() -> None:
        entry.clear()
        inner, own, entries = _beside(layer)
        if entries:  # else another's forward lies over ours, which from now on only calls on
            _put(layer, inner, own, [one for one in entries if one])

    return take_off


def _beside(layer: torch.nn.Module) -> tuple[Callable[..., Tensor], bool, list[list[Product]]]:
    present = vars(layer).get("forward")
    found = getattr(present, "beside", None)
    return found or (layer.forward, present is not None, [])


def _put(layer: Any, inner: Callable[..., Tensor], own: bool, entries: list[list[Product]]) -> None:
    if not entries and not own:
        del layer.forward
        return

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = inner(x, *args, **kwargs)
        for entry in entries:
            if entry:
                y = entry[0](layer, x, y)
        return y

    forward.beside = (inner, own, entries)  # type: ignore[attr-defined]
    layer.forward = forward if entries else inner


class Called:
    """In the place of the host's ``linear_input_act``, while a MODEL has products beside layers.

    It folds an activation into the pass of an int8 layer, and so never calls the layer itself.
    """

    def __init__(self, fold: Callable[..., Tensor]) -> None:
        """Take the host's own."""
        self.fold, self.users = fold, 0

    def __call__(self, linear: torch.nn.Module, x: Tensor, input_act: str) -> Tensor:
        """Of the layer with its products, where it has any; else as the host does."""
        if hasattr(vars(linear).get("forward"), "beside"):
            y: Tensor = linear(comfy.ops.INPUT_ACT_EAGER[input_act](x))
            return y
        return self.fold(linear, x, input_act)


def call_layers() -> Callable[[], None]:
    """Have layers called where newer hosts would pass them by; returns what takes this off."""
    present = getattr(comfy.ops, "linear_input_act", None)
    if present is None:
        return lambda: None
    called = present if isinstance(present, Called) else Called(present)
    comfy.ops.linear_input_act = called
    called.users += 1

    def take_off() -> None:
        called.users -= 1
        if not called.users and comfy.ops.linear_input_act is called:
            comfy.ops.linear_input_act = called.fold

    return take_off


def save_as(patcher: Model, patched: Callable[[Model], Model]) -> Callable[[], None]:
    """Have the host save another MODEL where it would save this one; returns what takes this off.

    It saves the weights alone, and would leave out what lies beside them.
    """
    network, held, name = patcher.model, weakref.ref(patcher), "state_dict_for_saving"
    if name in vars(network):
        return lambda: None

    def state_dict_for_saving(*args: Any, **kwargs: Any) -> dict[str, Any]:
        saved = patched(held())
        whole = hasattr(saved, name)  # the MODEL's own on newer hosts, which patches as it writes
        comfy.model_management.load_models_gpu([saved], force_patch_weights=not whole)
        # This one is unloaded by now, so the network has the host's own again.
        if not whole:
            return saved.model.state_dict_for_saving(*args, **kwargs)
        return saved.state_dict_for_saving(*args[1:], **kwargs)

    network.state_dict_for_saving = state_dict_for_saving
    return lambda: vars(network).pop(name, None)


class Bypass(PatcherInjection):
    """Puts products beside the layers of a MODEL when the host loads it, and takes them off."""

    def __init__(self, matrices: Matrices, patched: Callable[[Model], Model]) -> None:
        """Take ordinary float32 tensors on the CPU, and what makes the MODEL to save of the one."""
        super().__init__(self._inject, self._eject)
        self.matrices, self.patched = matrices, patched
        self.undo: list[Callable[[], None]] = []

    def _inject(self, patcher: Model) -> None:
        self._eject(patcher)
        # A list of its own for each time, which a MODEL that is forgotten while loaded cleans up.
        self.undo = undo = [call_layers(), save_as(patcher, self.patched)]
        for path, (up, down) in self.matrices.items():
            undo.append(put_beside(patcher.model.get_submodule(path), _Product(up, down)))
        weakref.finalize(patcher, _take_off, undo)

    def _eject(self, _patcher: Model) -> None:
        _take_off(self.undo)


def _take_off(undo: list[Callable[[], None]]) -> None:
    while undo:
        undo.pop()()


class _Product:
    """Keeps copies of both matrices where and as their layer computes."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        self.stored = self.here = (up, down)

    def __call__(self, layer: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        up, down = self.here
        if up.dtype != y.dtype or up.device != y.device:
            # Ordinary tensors, which may take part in training, even where a sampler runs.
            with torch.inference_mode(False):
                self.here = up, down = self.stored[0].to(y), self.stored[1].to(y)
        return add_product(layer, x, y, up, down)
