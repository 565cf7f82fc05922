"""Equation 3: the draws, the loss in the network's own prediction, the mask, the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.toy import ToyDenoiser, photograph, sentence
from imagic_core.objective import Embedding, Photographs, draw, reconstruction_loss

KINDS = ("eps", "v", "flow")


def draws_of(denoiser, x0, count=5, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return draw(denoiser.sigmas, x0, count, generator, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_error_of_what_the_network_predicts(kind: str) -> None:
    denoiser, x0, e = ToyDenoiser(kind), photograph(), sentence()
    draws = draws_of(denoiser, x0)
    loss, _ = reconstruction_loss(denoiser, x0, e, draws)

    clean = x0.x0[draws.photo]
    output = denoiser.output(denoiser.add_noise(clean, draws.noise, draws.sigma), e)
    truth = denoiser.true_output(clean, draws.noise, draws.sigma)
    error = ((output - truth) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(loss, error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_agrees_with_finite_differences(kind: str) -> None:
    denoiser, x0 = ToyDenoiser(kind), Photographs(photograph().x0.double())
    denoiser.text, denoiser.pooled = denoiser.text.double(), denoiser.pooled.double()
    draws = draws_of(denoiser, x0)
    draws = replace(draws, sigma=draws.sigma.double(), noise=draws.noise.double())
    e = Embedding(*(t.double().requires_grad_() for t in sentence().tensors()))

    def loss(tokens, pooled):
        return reconstruction_loss(denoiser, x0, Embedding(tokens, pooled), draws)[0]

    assert torch.autograd.gradcheck(loss, e.tensors())


def test_timesteps_are_uniform_over_the_schedule() -> None:
    denoiser, x0 = ToyDenoiser(), photograph()
    sigma = draws_of(denoiser, x0, 20_000).sigma
    shares = torch.stack([(sigma == level).float().mean() for level in denoiser.sigmas])
    torch.testing.assert_close(shares, torch.full((10,), 0.1), rtol=0, atol=0.01)


def test_stratified_draws_take_one_timestep_of_each_part() -> None:
    denoiser, x0 = ToyDenoiser(), photograph()
    assert torch.equal(draws_of(denoiser, x0, 10, stratified=True).sigma, denoiser.sigmas)
    plain = draws_of(denoiser, x0, 10).sigma
    assert len(set(plain.tolist())) < 10


def test_draws_follow_the_seed_alone() -> None:
    denoiser, x0 = ToyDenoiser(), photograph()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (draws_of(denoiser, x0, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.noise, other.noise)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_standard_normal() -> None:
    denoiser, x0 = ToyDenoiser(), photograph()
    noise = draws_of(denoiser, x0, 2_000).noise
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02


def test_every_photograph_is_drawn_equally_often() -> None:
    draws = draws_of(ToyDenoiser(), photograph(3), 6)
    assert sorted(draws.photo.tolist()) == [0, 0, 1, 1, 2, 2]
    firsts = {draws_of(ToyDenoiser(), photograph(3), 1, seed=s).photo.item() for s in range(20)}
    assert firsts == {0, 1, 2}


def squared_errors(denoiser, x0, e, draws):
    """[n, C, ...] of the network's output, worked out from the x0 estimates."""
    _, estimate = reconstruction_loss(denoiser, x0, e, draws)
    scale = denoiser.output_scale(draws.sigma).view(-1, 1, 1, 1)
    return ((estimate - x0.x0[draws.photo]) / scale) ** 2


def test_mask_counts_only_where_it_says() -> None:
    denoiser, x0, e = ToyDenoiser(), photograph(), sentence()
    draws = draws_of(denoiser, x0)
    error = squared_errors(denoiser, x0, e, draws)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., :2] = 1

    def loss(mask):
        return reconstruction_loss(denoiser, replace(x0, mask=mask), e, draws)[0]

    torch.testing.assert_close(loss(mask), error[..., :2].flatten(1).mean(1))
    torch.testing.assert_close(loss(1 - mask), error[..., 2:].flatten(1).mean(1))
    torch.testing.assert_close(loss(torch.ones(1, 1, 4, 5)), error.flatten(1).mean(1))
    torch.testing.assert_close(loss(None), error.flatten(1).mean(1))


def test_each_photograph_has_its_own_mask() -> None:
    denoiser, x0, e = ToyDenoiser(), photograph(2), sentence()
    draws = draws_of(denoiser, x0, 2)
    mask = torch.zeros(2, 1, 4, 5)
    mask[0, ..., 0], mask[1, ..., 1:] = 1, 1
    error = squared_errors(denoiser, x0, e, draws)
    loss, _ = reconstruction_loss(denoiser, replace(x0, mask=mask), e, draws)
    parts = [
        error[i, ..., 0].mean() if photo == 0 else error[i, ..., 1:].mean()
        for i, photo in enumerate(draws.photo.tolist())
    ]
    torch.testing.assert_close(loss, torch.stack(parts))
