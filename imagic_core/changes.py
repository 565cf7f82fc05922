"""What moves in stage B: changes of weights, in float32, which start at nothing.

The difference of each weight (`full`, `attention`), or a product of two thin matrices beside each
layer (`lora`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .relative import size_of


class Difference(torch.nn.Module):
    """W -> W + D, trained in float32.

    Attributes:
        moved: the parameter: D, or W + D while ``in_place_of`` W, which spares adding them up.
        size: of W, see ``relative``.
    """

    def __init__(self, weight: Tensor) -> None:
        """Start at D = 0, in the shape of ``weight``."""
        super().__init__()
        self.moved = torch.nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.size = size_of(weight)
        self._replaced: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """D."""
        moved = self.moved.detach()
        return moved - self._replaced if self._replaced is not None else moved

    @property
    def is_in_place(self) -> bool:
        """Whether the parameter is W + D now."""
        return self._replaced is not None

    def forward(self, weight: Tensor) -> Tensor:
        """W + D in float32."""
        return weight + self.moved

    @contextmanager
    def in_place_of(self, weight: Tensor) -> Iterator[torch.nn.Parameter]:
        """Let the parameter be W + D, to be put where a float32 ``weight`` was."""
        own = weight.detach()
        self.moved.data.add_(own)
        self._replaced = own
        try:
            yield self.moved
        finally:
            # Exactly what was added up to W, unless D is larger than W.
            self.moved.data.sub_(own)
            self._replaced = None


class LowRank(torch.nn.Module):
    """layer(x) -> layer(x) + up(down(x)), with both matrices trained in float32.

    As if W had become W + up @ down, but W is not asked for: it may be of any number format, and
    neither the changed weight nor a gradient in its size is ever made.

    Attributes:
        down, out: [r, in x kernel] and [r, out], the parameters; out is up lying on its side.
        passed: [2] while measuring: the energy of what the layer took, and of what it gave.
    """

    def __init__(self, layer: torch.nn.Module, rank: int, generator: torch.Generator) -> None:
        """Start at down = 0, and at an up that leaves lengths as they are."""
        super().__init__()
        out, into = matrix_shape(layer)
        start = torch.randn(max(out, rank), min(out, rank), generator=generator)
        start = torch.linalg.qr(start)[0]
        self.out = torch.nn.Parameter((start.mT if out >= rank else start).contiguous())
        self.down = torch.nn.Parameter(torch.zeros(rank, into))
        self.passed: Tensor | None = None

    def measure(self) -> Tensor:
        """From now on only look on; returns what is going to be ``passed``."""
        self.passed = torch.zeros(2, device=self.out.device)
        return self.passed

    @property
    def up(self) -> Tensor:
        """[out, r]."""
        return self.out.mT

    def forward(self, layer: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What becomes of y = layer(x)."""
        if self.passed is not None:
            self.passed += energies(layer, x, y).to(self.passed)
            return y
        return add_product(layer, x, y, self.up, self.down)


def is_product(layer: Any) -> bool:
    """Whether a layer is a matrix or a convolution, by what it tells of itself.

    A host's layers of quantised weights are not PyTorch's own.
    """
    matrix = hasattr(layer, "in_features") and layer.weight.ndim == 2
    return matrix or (hasattr(layer, "kernel_size") and not getattr(layer, "transposed", False))


def matrix_shape(layer: Any) -> tuple[int, int]:
    """(out, in x kernel) of a layer's weight, whatever form that is kept in."""
    if hasattr(layer, "in_features"):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups * prod(layer.kernel_size)


def add_product(layer: Any, x: Tensor, y: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Y + up(down(x)) beside y = layer(x), in y's number format; y is changed where no grad is.

    Args:
        layer: a matrix, or a convolution of any size, stride, padding and groups.
        x: [..., in], or [B, in, ...] for a convolution.
        y: what the layer made of it.
        up: [out, r].
        down: [r, in x kernel].
    """
    up, down = up.to(y), down.to(y)
    if hasattr(layer, "in_features"):
        thin = F.linear(x.to(y), down).reshape(-1, len(down))
        whole, out = y.reshape(-1, len(up)), (thin, up.t())
    else:
        parts, rank = layer.groups, len(down)
        kernel = down.unflatten(1, (-1, *layer.kernel_size))
        kernel = kernel if parts == 1 else torch.cat([kernel] * parts)
        thin = layer._conv_forward(x.to(y), kernel, None)
        thin = thin.reshape(len(y) * parts, rank, -1)
        each = up.unflatten(0, (parts, -1)).expand(len(y), parts, -1, rank)
        whole, out = y.reshape(len(y) * parts, len(up) // parts, -1), (each.flatten(0, 1), thin)
    add = torch.addmm if whole.ndim == 2 else torch.baddbmm
    if torch.is_grad_enabled() or not y.is_contiguous():
        return add(whole, *out).view_as(y)
    add(whole, *out, out=whole)
    return y


def energies(layer: Any, x: Tensor, y: Tensor) -> Tensor:
    """[2] sum of the squares of what a layer's weight takes, and of what it makes of that.

    Args:
        layer: a matrix or a convolution, which takes each place of x as often as its kernel and
            its stride have it.
        x: [..., in], or [B, in, ...] for a convolution.
        y: layer(x).
    """
    bias = getattr(layer, "bias", None)
    again = 1.0
    if hasattr(layer, "kernel_size"):
        again = prod(layer.kernel_size) / prod(layer.stride)
        bias = None if bias is None else bias.view(-1, *[1] * len(layer.kernel_size))
    made = y if bias is None else y - bias.to(y)
    lengths = [torch.linalg.vector_norm(t, dtype=torch.float32) for t in (x, made)]
    return torch.stack(lengths).square() * torch.tensor([again, 1.0], device=y.device)
