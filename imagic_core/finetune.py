"""Stage B, section 3.2 "Model fine-tuning": e_opt fixed, minimise equation 3 over theta.

The weights themselves stay as they are. What is trained is a change, in float32, which starts at
nothing: the difference of each weight (`full`, `attention`), or a product of two thin matrices
beside each layer (`lora`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Keeper
from .fit import Progress, Settings, fit
from .objective import Denoiser, Embedding, Photographs

_SHORT = Settings(
    steps=300,  # a fifth of the paper's, each on several draws
    learning_rate=4e-4,
    seed=0,
    batch_size=4,
    stratified=True,  # lowers the variance of the gradient by a quarter
    decay=True,  # comes to rest, instead of where the last draws kicked it
)
METHODS = {
    "lora": _SHORT,
    "attention": replace(_SHORT, learning_rate=1.2e-4),
    "full": replace(_SHORT, learning_rate=2e-5),
}
"""Which weights can move, and the settings that each starts from.

The rates are for networks as wide as Stable Diffusion's. What a step adds up to grows with the
width for `attention` and `full`, and with its square root for the two matrices of `lora`.
"""

PAPER, PAPER_METHOD = Settings(steps=1500, learning_rate=5e-7, seed=0), "full"
"""The paper's recipe for Stable Diffusion, section 4."""


class Difference(torch.nn.Module):
    """W -> W + D, with D trained in float32."""

    def __init__(self, weight: Tensor) -> None:
        """Start at D = 0, in the shape of ``weight``."""
        super().__init__()
        self.difference = torch.nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """W + D in float32."""
        return weight + self.difference


class LowRank(torch.nn.Module):
    """layer(x) -> layer(x) + alpha / r * up(down(x)), with both matrices trained in float32.

    As if W had become W + alpha / r * up @ down, but W is not asked for: it may be of any number
    format, and neither the changed weight nor a gradient in its size is ever made.
    """

    def __init__(
        self, layer: torch.nn.Module, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Start at down = 0, and up as PyTorch starts a layer of its size: as ComfyUI's own."""
        super().__init__()
        out, into = matrix_shape(layer)
        up = torch.empty(out, rank).uniform_(-1, 1, generator=generator) / rank**0.5
        self.up = torch.nn.Parameter(up)
        self.down = torch.nn.Parameter(torch.zeros(rank, into))
        self.alpha = alpha

    def forward(self, layer: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What becomes of y = layer(x)."""
        return add_product(layer, x, y, self.up * (self.alpha / len(self.down)), self.down)


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
        thin = layer._conv_forward(x.to(y), torch.cat([kernel] * parts), None)
        thin = thin.reshape(len(y) * parts, rank, -1)
        each = up.unflatten(0, (parts, -1)).expand(len(y), parts, -1, rank)
        whole, out = y.reshape(len(y) * parts, len(up) // parts, -1), (each.flatten(0, 1), thin)
    add = torch.addmm if whole.ndim == 2 else torch.baddbmm
    if torch.is_grad_enabled() or not y.is_contiguous():
        return add(whole, *out).view_as(y)
    add(whole, *out, out=whole)
    return y


def choose_changes(
    method: str,
    layers: Mapping[str, torch.nn.Module],
    low_rank: Callable[[torch.nn.Module], LowRank],
) -> dict[str, Difference | LowRank]:
    """Choose what moves, and how.

    Args:
        method: `full` moves every weight and bias, `attention` those of the attention layers,
            `lora` every matrix and convolution through a low-rank change.
        layers: name -> layer with ``weight`` and perhaps ``bias``, all that can be moved.
        low_rank: makes the low-rank change of one layer.

    Returns:
        Name of the weight or bias -> its change.

    Raises:
        ValueError: unknown method, or the model has no weight that the method moves.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    changes: dict[str, Difference | LowRank] = {}
    for name, layer in layers.items():
        if method == "lora":
            if is_product(layer):
                changes[f"{name}.weight"] = low_rank(layer)
        elif method == "full" or "attn" in name or "attention" in name:
            for part in ("weight", "bias"):
                if getattr(layer, part, None) is not None:
                    changes[f"{name}.{part}"] = Difference(getattr(layer, part))
    if not changes:
        raise ValueError(f"the model has no weights that method {method!r} could move")
    return changes


def finetune_model(
    denoiser: Denoiser,
    photographs: Photographs,
    optimized: Embedding,
    changes: Mapping[str, torch.nn.Module],
    settings: Settings,
    on_step: Callable[[Progress], None],
    keeper: Keeper | None = None,
) -> list[float]:
    """Fit the changes of the weights to the photograph, in place.

    Args:
        denoiser: the model, with ``changes`` applied to its weights.
        photographs: x, and where to be faithful to it.
        optimized: e_opt of stage A, held fixed.
        changes: from ``choose_changes``.
        settings: the paper's are ``PAPER``.
        on_step: called after each step; what it raises ends the training and passes through.
        keeper: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    parameters = [p for change in changes.values() for p in change.parameters() if p.requires_grad]
    return fit(denoiser, photographs, optimized, [(1.0, parameters)], settings, on_step, keeper)
