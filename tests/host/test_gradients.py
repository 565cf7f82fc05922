"""Gradients of the loss by the embedding, against finite differences, on the host's own networks.

Computed in float64 within the network; the host rounds its output to float32.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import kinds
from torch import Tensor


def slope(loss: Callable[[Tensor], float], at: Tensor, direction: Tensor, step: float) -> float:
    """Derivative of `loss` along `direction`, with the error of the fourth order in `step`."""

    def difference(h: float) -> float:
        return (loss(at + h * direction) - loss(at - h * direction)) / (2 * h)

    return (4 * difference(step / 2) - difference(step)) / 3


def test_gradient_is_the_slope_of_the_loss(nodes, loaded, monkeypatch):
    family, model = loaded
    text, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    # The host's fast ones do not take float64.
    for name, eager in list(nodes.host.kernels.kitchen()):
        monkeypatch.setattr(torch.ops.comfy_kitchen, name, eager)
    with nodes.session(model, text, image, compute_dtype=torch.float64) as session:
        draws = nodes.draws(session, 2, torch.Generator().manual_seed(3))

        def loss(*tensors: Tensor) -> Tensor:
            # The same noise on an upscaler's low-resolution picture.
            session.denoiser.passes = 0
            return nodes.losses(session, tensors, draws).mean()

        leaves = [tensor.double().requires_grad_() for tensor in session.embedding.tensors()]
        loss(*leaves).backward()
        points = [leaf.detach() for leaf in leaves]
        generator = torch.Generator().manual_seed(4)
        for i, (leaf, point) in enumerate(zip(leaves, points, strict=True)):

            @torch.no_grad()
            def along(tensor: Tensor, i: int = i) -> float:
                return loss(*points[:i], tensor, *points[i + 1 :]).double().item()

            anywhere = torch.randn(point.shape, generator=generator, dtype=torch.float64)
            anywhere *= point.norm() / anywhere.norm()
            if leaf.grad is None:
                assert i == 1 and not family.uses_pooled
                assert along(point) == along(point + anywhere)
                continue
            steepest = leaf.grad * point.norm() / leaf.grad.norm()
            expected = (leaf.grad * steepest).sum().item()
            assert slope(along, point, steepest, 2e-3) == pytest.approx(expected, rel=5e-4)
            # The steepest direction does not see what the gradient misses; any other does.
            usual = expected / point.numel() ** 0.5
            assert slope(along, point, anywhere, 0.1) == pytest.approx(
                (leaf.grad * anywhere).sum().item(), abs=5e-3 * usual
            )
