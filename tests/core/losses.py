"""Equation 3 as one number, to compare two states of a model."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


@torch.no_grad()
def mean_loss(
    objective: ModuleType, denoiser: Any, photographs: Any, embedding: Any, draws: Any
) -> float:
    """The mean over fixed draws, one at a time; ``objective`` is imagic_core's module."""
    losses = [
        objective.reconstruction_loss(denoiser, photographs, embedding, one)[0].item()
        for one in draws.split(1)
    ]
    return sum(losses) / len(losses)
