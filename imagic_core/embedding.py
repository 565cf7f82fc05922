"""Stage A, section 3.2 "Text embedding optimization": theta frozen, minimise equation 3 over e."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .checkpoint import Keeper
from .fit import Progress, Settings, fit
from .objective import Denoiser, Embedding, Photographs

DEFAULT = Settings(
    steps=40,  # of several draws each: a sixth of the paper's
    learning_rate=6e-2,  # at a third of it, some edits of place come at no eta
    seed=0,
    batch_size=4,
    stratified=True,  # lowers the variance of the gradient by a quarter
    decay=True,  # comes to rest, instead of where the last draws kicked it
    relative=True,  # T5's tokens are a tenth of CLIP's, some of SDXL's twenty times the others
)
"""Ours: the same place in fewer steps."""

FAST = replace(DEFAULT, steps=30, batch_size=2)
"""For a first look."""

PAPER = Settings(steps=1000, learning_rate=2e-3, seed=0)
"""The paper's recipe for Stable Diffusion, section 4."""


def optimize_embedding(
    denoiser: Denoiser,
    photographs: Photographs,
    target: Embedding,
    settings: Settings,
    on_step: Callable[[Progress], None],
    keeper: Keeper | None = None,
) -> tuple[Embedding, list[float]]:
    """Find e_opt near e_tgt, the embedding under which the model best reconstructs the photograph.

    All tensors of the embedding are optimised together; one that the model does not read stays as
    it was.

    Args:
        denoiser: the pre-trained model; its weights must not require grad.
        photographs: x, and where to be faithful to it.
        target: e_tgt, where the optimisation starts.
        settings: the paper's are ``PAPER`` for Stable Diffusion, 100 steps at 1e-3 for Imagen.
        on_step: called after each step; what it raises ends the training and passes through.
        keeper: see ``fit``.

    Returns:
        e_opt in float32, and the loss of each step.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    start = [tensor.detach().float() for tensor in target.tensors()]
    units = [_sizes(tensor) if settings.relative else torch.ones(()) for tensor in start]
    moved = [torch.zeros_like(tensor).requires_grad_() for tensor in start]

    def embedding() -> Embedding:
        parts = zip(start, units, moved, strict=True)
        return target.with_tensors(e + unit * by for e, unit, by in parts)

    optimiser = torch.optim.Adam(moved, lr=settings.learning_rate)
    losses = fit(denoiser, photographs, embedding, optimiser, settings, on_step, keeper)
    e_opt = embedding()
    return e_opt.with_tensors(tensor.detach() for tensor in e_opt.tensors()), losses


def _sizes(tensor: Tensor) -> Tensor:
    """[..., 1] root mean square of each token, of which text encoders mix many sizes."""
    there = tensor != 0  # some encoders fill up their tokens, or their number, with zeros
    squares = tensor.square().sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
    mean = tensor.square().sum() / there.sum().clamp(min=1)
    return torch.where(squares > 0, squares, torch.where(mean > 0, mean, 1.0)).sqrt()
