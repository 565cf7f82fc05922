"""The training loop that stages A and B share: equation 3, minimised step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import Denoiser, Embedding, Photographs, draw, reconstruction_loss


@dataclass(frozen=True)
class Settings:
    """How long and how hard to train.

    Attributes:
        steps: optimiser steps, at least 1.
        learning_rate: the size of a step, 0 or more.
        seed: of the timesteps and the noise, 0 to 2^64 - 1.
        batch_size: draws of (t, eps) averaged in each step; more is a steadier gradient.
        micro_batch: draws that pass through the model together. It bounds the memory and leaves
            the result as it is, but for rounding.
        stratified: spread each step's timesteps evenly over the schedule.
        decay: lower the learning rate linearly, so that the last step ends at rest instead of
            wherever the noise of its draws had kicked it.
        relative: the learning rate counts in the size of what it moves: of a token of the
            embedding in stage A, of a layer in stage B. Else it is Adam's own, as in the paper.
    """

    steps: int
    learning_rate: float
    seed: int
    batch_size: int = 1
    micro_batch: int = 1
    stratified: bool = False
    decay: bool = False
    relative: bool = False


@dataclass(frozen=True)
class Progress:
    """What a step has to show.

    Attributes:
        step: its number, from 1.
        steps: how many there are.
        loss: equation 3 over its draws, before its change.
        estimate: [n, C, ...] the x0 estimates of its draws.
    """

    step: int
    steps: int
    loss: float
    estimate: Tensor


def fit(
    denoiser: Denoiser,
    photographs: Photographs,
    embedding: Callable[[], Embedding],
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    on_step: Callable[[Progress], None],
) -> list[float]:
    """Minimise equation 3 over the parameters of the optimiser, in place.

    Args:
        denoiser: the model.
        photographs: x, and where to be faithful to it.
        embedding: gives e as it stands.
        optimiser: what moves, and how, at the learning rate of the settings. Its parameters are
            float32 leaves that require grad, on which the model or the embedding depends.
        settings: steps, seed and batch.
        on_step: called after each step; what it raises ends the training and passes through.

    Returns:
        The loss of each step, before that step's change.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    # Half-precision gradients of this loss are of the order of 1e-7 and would vanish.
    scaler = torch.amp.GradScaler(
        photographs.x0.device.type, enabled=denoiser.compute_dtype == torch.float16
    )
    generator = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        draws = draw(
            denoiser.sigmas,
            photographs,
            settings.batch_size,
            generator,
            stratified=settings.stratified,
        )
        total, estimates = torch.zeros((), device=photographs.x0.device), []
        for part in draws.split(settings.micro_batch):
            errors, estimate = reconstruction_loss(denoiser, photographs, embedding(), part)
            share = errors.mean() * (len(part) / len(draws))
            scaler.scale(share).backward()
            total += share.detach()
            estimates.append(estimate)
        loss = total.item()  # the only wait for the device
        losses.append(loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss}: the learning rate {settings.learning_rate:g} "
                "is too high, or the model overflows in its number format"
            )
        rest = 1 - (step - 1) / settings.steps if settings.decay else 1.0
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * rest
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        on_step(Progress(step, settings.steps, loss, torch.cat(estimates)))
    return losses
