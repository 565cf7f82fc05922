"""Stage B, section 3.2 "Model fine-tuning": e_opt fixed, minimise equation 3 over theta.

The weights themselves stay as they are. What is trained is a change to each, in float32, which
starts at nothing: the difference itself (`full`, `attention`) or a product of two thin matrices
(`lora`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

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


def choose_changes(
    method: str,
    weights: Mapping[str, Tensor],
    low_rank: Callable[[Tensor], torch.nn.Module],
) -> dict[str, torch.nn.Module]:
    """Choose which weights move, and how.

    Args:
        method: `full` moves every weight and bias, `attention` those of the attention layers,
            `lora` every matrix and convolution through a low-rank change.
        weights: name -> weight, all that can be moved.
        low_rank: makes the low-rank change of one weight.

    Returns:
        name -> module that maps that weight to the changed weight.

    Raises:
        ValueError: unknown method, or the model has no weight that the method moves.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if method == "lora":
        changes = {name: low_rank(w) for name, w in weights.items() if w.ndim >= 2}
    else:
        changes = {
            name: Difference(w)
            for name, w in weights.items()
            if method == "full" or "attn" in name or "attention" in name
        }
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
) -> list[float]:
    """Fit the changes of the weights to the photograph, in place.

    Args:
        denoiser: the model, with ``changes`` applied to its weights.
        photographs: x, and where to be faithful to it.
        optimized: e_opt of stage A, held fixed.
        changes: from ``choose_changes``.
        settings: the paper's are ``PAPER``.
        on_step: called after each step; what it raises ends the training and passes through.

    Returns:
        The loss of each step.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    parameters = [p for change in changes.values() for p in change.parameters() if p.requires_grad]
    return fit(denoiser, photographs, optimized, [(1.0, parameters)], settings, on_step)
