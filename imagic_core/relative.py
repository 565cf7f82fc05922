"""The steps of stage B, measured in the size of the layer that they change.

A step of Adam moves each number by the learning rate. What that adds up to in a layer hangs on its
width, on the rank, and on how large its weights are. Here the momentum of the gradient becomes a
change of ``lr`` times the size of the layer: the same share of what any layer can give out,
whatever its shape, its number format and the rank. This is Muon (Jordan, 2024) in the units of
"Scalable Optimization in the Modular Norm" (Large et al., 2024); that the r directions of a
low-rank change share one step between them was measured.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.9

_SWIFT = (3.4445, -4.7750, 2.0315)
"""Coefficients of Newton and Schulz's iteration that bring small singular values up at once."""
_EXACT = (1.875, -1.25, 0.375)
"""Those that then bring them to one."""
_ROUNDING = 1e-6
"""A squared singular value below this share of the sum of all is but rounding."""


class RelativeSteps(torch.optim.Optimizer):
    """Turns momentum into changes of a known size, with one number of state a parameter.

    Thin matrices [r, n] move in all their directions alike, and what counts is the root of the sum
    of the squares. Of whole weights each number moves alike, which costs next to nothing, and what
    counts is the largest singular value, since it grows with the width where the numbers do not.

    Of a whole weight's momentum only the signs matter, so it is kept in bfloat16. Its gradient can
    go there, and away, as soon as the backward pass has it, so that no two are held.
    """

    def __init__(
        self,
        thin: Sequence[tuple[Tensor, float]],
        whole: Sequence[tuple[Tensor, float]],
        lr: float,
        *,
        at_once: bool = False,
    ) -> None:
        """Take what is to be trained, float32 leaves, each with what its steps are measured in.

        Args:
            thin: matrices [r, n], with one r for all.
            whole: weights [out, ...] and biases.
            lr: size of a step, as a share of that.
            at_once: take gradients so; not where a scaler has to see them first.
        """
        groups = [
            {"params": [p for p, _ in kind], "sizes": [size for _, size in kind], "thin": is_thin}
            for kind, is_thin in ((thin, True), (whole, False))
            if kind
        ]
        super().__init__(groups, {"lr": lr})
        self._came: set[Tensor] = set()
        # Weakly: a ring of references would hold the memory after the training.
        held = weakref.ref(self)
        for p, _ in whole if at_once else ():
            p.register_post_accumulate_grad_hook(partial(_hand_over, held))

    @property
    def is_within_step(self) -> bool:
        """Whether some gradients have been taken for a step that is not done."""
        return bool(self._came)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Change each tensor that has got a gradient."""
        for group in self.param_groups:
            (self._step_thin if group["thin"] else self._step_whole)(group)

    def _step_thin(self, group: dict[str, Any]) -> None:
        pairs = zip(group["params"], group["sizes"], strict=True)
        moved = [(p, size) for p, size in pairs if p.grad is not None]
        if not moved:
            return
        gradients = [p.grad for p, _ in moved]
        momentum = [self._momentum(p, p.dtype) for p, _ in moved]
        torch._foreach_lerp_(momentum, gradients, 1 - MOMENTUM)
        # Nesterov's: where the momentum will have come to.
        torch._foreach_lerp_(gradients, momentum, MOMENTUM)
        for (p, size), change in zip(moved, orthogonal(gradients), strict=True):
            p.sub_(change, alpha=group["lr"] * len(p) ** -0.5 * size)

    def _step_whole(self, group: dict[str, Any]) -> None:
        for p, size in zip(group["params"], group["sizes"], strict=True):
            if p.grad is not None:
                self._take(p)
            if p in self._came:
                change = self._momentum(p, torch.bfloat16).float().sign_()
                if change.ndim > 1:
                    p.addcdiv_(change, self._size_of_signs(p, change), value=-group["lr"] * size)
                else:
                    p.sub_(change, alpha=group["lr"] * size)
        self._came.clear()

    def _size_of_signs(self, p: Tensor, change: Tensor) -> Tensor:
        """The largest singular value; the last step's direction is not far from this one's."""
        before = self.state[p].get("direction")
        found, direction = largest(change.flatten(1), 3 if before is None else 2, before)
        self.state[p]["direction"] = direction
        return found.clamp(min=1e-30)

    @torch.no_grad()
    def _take(self, p: Tensor) -> None:
        """Let a gradient, or its part of some of the draws, go into the momentum."""
        if p.grad is not None:
            momentum = self._momentum(p, torch.bfloat16)
            exact = momentum.float()
            if p in self._came:
                exact.add_(p.grad, alpha=1 - MOMENTUM)
            else:
                exact.lerp_(p.grad, 1 - MOMENTUM)
            momentum.copy_(exact)
        self._came.add(p)
        p.grad = None

    def _momentum(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, dtype=dtype)
        # What was kept comes back in the format of the parameter.
        state["momentum"] = found = state["momentum"].to(dtype)
        return found


def _hand_over(optimiser: weakref.ref[RelativeSteps], p: Tensor) -> None:
    found = optimiser()
    if found is not None:
        found._take(p)


def largest(matrix: Tensor, turns: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest singular value of a matrix [m, n], from below, by power iteration.

    Args:
        matrix: what it is of.
        turns: how often that is passed, forth and back.
        start: [n] the direction that was found for one much like it.

    Returns:
        It, and its direction [n].
    """
    # A row is never at right angles to all rows, as any other start may be.
    vector = matrix[0] if start is None else start + matrix[0]
    for _ in range(turns):
        vector = matrix.mT @ (matrix @ (vector / vector.norm().clamp(min=1e-30)))
    # No matrix has less than if all its singular values were alike.
    alike = matrix.norm() / min(matrix.shape) ** 0.5
    return torch.maximum(vector.norm().sqrt(), alike), vector


def size_of(weight: Tensor) -> float:
    """The largest singular value of a weight [out, ...], of a vector its root mean square.

    1 for a weight of nothing.
    """
    exact = weight.detach().float()
    size = largest(exact.flatten(1), 8)[0] if exact.ndim > 1 else exact.square().mean().sqrt()
    return size.item() or 1.0


def orthogonal(thin: Sequence[Tensor]) -> Iterator[Tensor]:
    """The nearest matrices whose singular values are one, or nothing where there is but rounding.

    Args:
        thin: float32 matrices [r, n], with one r for all.
    """
    grams = torch.stack([m @ m.mT for m in thin])
    total = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    one = torch.eye(grams.shape[-1], device=grams.device)
    # A matrix of zeros stays one.
    scale = torch.where(total > 0, total.rsqrt(), 0.0)
    gram, turn = grams * scale**2 + _ROUNDING * one, one.expand_as(grams)
    for a, b, c in 5 * [_SWIFT] + 3 * [_EXACT]:
        factor = a * one + b * gram + c * gram @ gram
        turn, gram = factor @ turn, factor @ gram @ factor
    # One after the other: all of them at once would be as large as what is trained.
    return (t @ m for t, m in zip(turn * scale, thin, strict=True))
