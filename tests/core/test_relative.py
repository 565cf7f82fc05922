"""Steps in the size of what they change."""

from __future__ import annotations

import pytest
import torch

from core.toy import ToyDenoiser, photograph, sentence
from imagic_core.changes import LowRank
from imagic_core.finetune import finetune_model
from imagic_core.fit import Settings
from imagic_core.objective import Embedding
from imagic_core.relative import RelativeSteps, orthogonal, size_of

RATE = 0.01


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("shape", [(4, 320), (16, 1280), (16, 4), (64, 100)])
def test_thin_matrices_are_made_orthogonal(shape, scale) -> None:
    """Against the singular value decomposition; the largest is as exact as numbers are."""
    matrix = noise(*shape) * scale
    (found,) = orthogonal([matrix])
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.svdvals(found)[0].item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(found, u @ v, atol=0.05, rtol=0)


def test_what_is_but_rounding_is_not_made_large() -> None:
    low = noise(16, 2) @ torch.randn(2, 500, generator=torch.Generator().manual_seed(1))
    found, nothing = orthogonal([low + 1e-6 * noise(16, 500), torch.zeros(16, 500)])
    sizes = torch.linalg.svdvals(found)
    assert sizes[1] > 0.9 and sizes[2] < 0.01
    assert not nothing.any()


def stepped(gradients: list[torch.Tensor], size: float = 1.0) -> list[torch.Tensor]:
    """By how much a whole weight moved with each gradient, in the rate."""
    weight = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimiser = RelativeSteps([], [(weight, size)], RATE)
    moves = []
    for gradient in gradients:
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimiser.step()
        moves.append((before - weight.detach()) / RATE)
    return moves


def size(weight: torch.Tensor) -> float:
    if weight.ndim == 1:
        return weight.abs().max().item()
    return torch.linalg.svdvals(weight.flatten(1))[0].item()


@pytest.mark.parametrize("shape", [(8, 8), (320, 320), (64, 16, 3, 3), (7,)])
def test_the_step_of_a_whole_weight_is_the_signs_as_large_as_told(shape) -> None:
    """Also of those after the first, which look for their size from the last one's on."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for _ in range(6)]
    momentum = torch.zeros(shape)
    for gradient, move in zip(gradients, stepped(gradients, 3.0), strict=True):
        momentum = momentum.lerp(gradient, 0.1)
        agree = move.sign() == momentum.sign()
        assert agree[momentum.abs() > 0.02 * momentum.abs().max()].all()
        assert 3.0 <= size(move) * 1.0001 < 3.0 * 1.3  # power iteration comes from below


def test_signs_that_cancel_along_each_row_are_no_larger() -> None:
    """Nothing that the power iteration starts from may lie at right angles to all of them."""
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [2.0, -2.0]])
    for rows in (weight, torch.cat([torch.zeros(1, 2), weight])):
        assert all(size(move) <= 1.5 for move in stepped([rows, rows]))


def test_a_weight_that_got_no_gradient_at_first_moves_as_far_as_any() -> None:
    nothing, then = torch.zeros(16, 16), noise(16, 16)
    first, second = stepped([nothing, then])
    assert not first.any()
    assert 1.0 <= size(second) < 1.3


@pytest.mark.parametrize("shape", [(320, 320), (64, 16, 3, 3)])
def test_the_size_of_a_weight_is_its_largest_singular_value(shape) -> None:
    weight = noise(*shape)
    exact = torch.linalg.svdvals(weight.flatten(1))[0].item()
    assert size_of(weight) == pytest.approx(exact, rel=0.1)
    assert size_of(torch.full((5,), -3.0)) == pytest.approx(3.0)
    assert size_of(torch.zeros(4, 4)) == size_of(torch.zeros(4)) == 1.0


def test_steps_are_momentum_and_rest_where_no_gradient_comes() -> None:
    moved, still = (torch.nn.Parameter(torch.zeros(2, 6)) for _ in range(2))
    optimiser = RelativeSteps([(moved, 3.0), (still, 3.0)], [], RATE)
    gradient = noise(2, 6)
    for step in (1, 2, 3, 4):
        moved.grad = gradient.clone()
        optimiser.step()
        optimiser.zero_grad()
        size = torch.linalg.svdvals(moved.detach())
        torch.testing.assert_close(
            size, torch.full((2,), 3.0 * RATE * step / 2**0.5), rtol=0.05, atol=0
        )
    moved.grad = -gradient
    optimiser.step()
    # One gradient against four is not enough to turn round.
    assert torch.linalg.svdvals(moved.detach())[0] > 3.0 * RATE * 4 / 2**0.5
    assert not still.any()


class Layered(ToyDenoiser):
    """The toy, its picture passed through a matrix that has a change beside it."""

    def __init__(self, scale: float, rank: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3).requires_grad_(False)
        torch.nn.init.eye_(self.layer.weight).mul_(scale)
        self.scale = scale
        self.change = LowRank(self.layer, rank, torch.Generator().manual_seed(0))

    def output(self, x_t, embedding):
        x = super().output(x_t, embedding).movedim(1, -1)
        y = self.change(self.layer, x, self.layer(x))
        return ((y - self.layer.bias) / self.scale).movedim(-1, 1)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_first_step_is_the_same_share_of_every_layer(scale: float, rank: int) -> None:
    denoiser = Layered(scale, rank)
    settings = Settings(1, RATE, seed=0, batch_size=4, micro_batch=4, relative=True)
    changes = {"layer.weight": denoiser.change}
    finetune_model(denoiser, photograph(), sentence(), changes, settings, lambda _: None)
    made = denoiser.change.up @ denoiser.change.down
    directions = min(rank, 3)
    size = torch.linalg.matrix_norm(made).item() * (rank / directions) ** 0.5
    assert size == pytest.approx(RATE * scale, rel=0.05)


def test_looking_at_a_layer_leaves_it_as_it_is() -> None:
    denoiser, embedding = Layered(1.0, 2), sentence()
    before = denoiser.change.up.clone()
    settings = Settings(1, 0.0, seed=0, relative=True)
    changes = {"layer.weight": denoiser.change}
    finetune_model(denoiser, photograph(), embedding, changes, settings, lambda _: None)
    assert torch.equal(before, denoiser.change.up) and not denoiser.change.down.any()
    assert denoiser.change.passed is None and isinstance(embedding, Embedding)
