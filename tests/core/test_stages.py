"""Stages A, B and C on a denoiser of a few numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from core.losses import mean_loss
from core.toy import ToyDenoiser, photograph, sentence
from imagic_core import objective
from imagic_core.changes import Difference
from imagic_core.embedding import optimize_embedding
from imagic_core.finetune import choose_changes, finetune_model
from imagic_core.fit import Settings
from imagic_core.interpolate import interpolate, project
from imagic_core.objective import Embedding, draw

SETTINGS = Settings(steps=60, learning_rate=0.02, seed=5, batch_size=4, micro_batch=4)


def ignore(_progress) -> None:
    """No report is wanted."""


def fixed_draws(denoiser, x0):
    return draw(denoiser.sigmas, x0, 64, torch.Generator().manual_seed(99))


class Weighted(ToyDenoiser):
    """The toy with its gain passed through a trained change, as a host would do it."""

    def __init__(self, changes) -> None:
        super().__init__()
        self.changes = changes

    def output(self, x_t, embedding):
        before = self.gain
        self.gain = self.changes["gain.weight"](self.gain)
        try:
            return super().output(x_t, embedding)
        finally:
            self.gain = before


def gain_changes():
    return {"gain.weight": Difference(ToyDenoiser().gain)}


def test_stage_a_lowers_the_loss_and_leaves_the_target_alone() -> None:
    denoiser, x0, e_tgt = ToyDenoiser(), photograph(), sentence()
    before = [t.clone() for t in e_tgt.tensors()]
    e_opt, losses = optimize_embedding(denoiser, x0, e_tgt, SETTINGS, ignore)
    draws = fixed_draws(denoiser, x0)
    before_a, after_a = (mean_loss(objective, denoiser, x0, e, draws) for e in (e_tgt, e_opt))
    assert after_a < before_a - 1e-3
    assert len(losses) == SETTINGS.steps
    assert all(torch.equal(a, b) for a, b in zip(before, e_tgt.tensors(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(before, e_opt.tensors(), strict=True))
    assert not any(t.requires_grad for t in e_opt.tensors())


def test_stage_a_leaves_a_pooled_vector_that_the_model_ignores() -> None:
    denoiser, e_tgt = ToyDenoiser(), sentence()
    denoiser.pooled = torch.zeros_like(denoiser.pooled)
    e_opt, _ = optimize_embedding(denoiser, photograph(), e_tgt, SETTINGS, ignore)
    assert torch.equal(e_opt.pooled, e_tgt.pooled)


def test_stage_a_first_step_is_adam_on_equation_3() -> None:
    """Adam's first step moves each number by the learning rate against the sign of its gradient."""
    denoiser, x0, e_tgt = ToyDenoiser(), photograph(), sentence()
    one = replace(SETTINGS, steps=1)
    e_opt, losses = optimize_embedding(denoiser, x0, e_tgt, one, ignore)
    leaves = [t.clone().requires_grad_() for t in e_tgt.tensors()]
    draws = draw(denoiser.sigmas, x0, 4, torch.Generator().manual_seed(one.seed))
    noisy = denoiser.add_noise(x0.x0, draws.noise, draws.sigma)
    loss = ((draws.noise - denoiser.output(noisy, Embedding(*leaves))) ** 2).mean()
    loss.backward()
    assert losses == [pytest.approx(loss.item(), rel=1e-5)]
    for optimised, leaf in zip(e_opt.tensors(), leaves, strict=True):
        moved = (optimised - leaf.detach()) / one.learning_rate
        strong = leaf.grad.abs() > 1e-6
        assert strong.any()
        torch.testing.assert_close(moved[strong], -leaf.grad.sign()[strong], rtol=0, atol=0.02)


def test_a_relative_rate_counts_in_units_of_each_token() -> None:
    """Tokens of any size, the last ones zeros, take steps of the same share of themselves."""
    denoiser, x0, e_tgt = ToyDenoiser(), photograph(), sentence()
    scale = torch.tensor([1.0, 0.1, 20.0] + [1.0] * (e_tgt.tokens.shape[1] - 3))[:, None]
    mixed = Embedding(torch.cat([e_tgt.tokens * scale, torch.zeros_like(e_tgt.tokens)], 1))
    one = replace(SETTINGS, steps=1, relative=True)
    e_opt, _ = optimize_embedding(denoiser, x0, mixed, one, ignore)
    moved = (e_opt.tokens - mixed.tokens).abs().amax(-1)[0]
    size = mixed.tokens.square().mean(-1).sqrt()[0]
    there = size > 0
    mean = mixed.tokens[mixed.tokens != 0].square().mean().sqrt()
    torch.testing.assert_close(moved[there], one.learning_rate * size[there], rtol=0.02, atol=0)
    torch.testing.assert_close(
        moved[~there], one.learning_rate * mean.expand(sum(~there)), rtol=0.02, atol=0
    )


class Watched(ToyDenoiser):
    """Remembers the embedding of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def predict(self, x_t, sigma, embedding):
        self.seen.append(embedding.tokens.detach().clone())
        return super().predict(x_t, sigma, embedding)


@pytest.mark.parametrize("decay,rates", [(False, [1, 1, 1, 1]), (True, [1, 0.8, 0.6, 0.4])])
def test_a_decaying_rate_comes_to_rest(decay, rates) -> None:
    """Under a steady gradient, Adam's steps are as long as the learning rate."""
    settings = Settings(5, 1e-4, seed=5, batch_size=512, micro_batch=512, decay=decay)
    denoiser = Watched()
    optimize_embedding(denoiser, photograph(), sentence(), settings, ignore)
    moved = [(b - a).abs().max().item() for a, b in pairwise(denoiser.seen)]
    assert moved == pytest.approx([1e-4 * rate for rate in rates], rel=0.15)


def test_stage_b_lowers_the_loss_further_and_leaves_the_weights_alone() -> None:
    x0, e_tgt = photograph(), sentence()
    e_opt, _ = optimize_embedding(ToyDenoiser(), x0, e_tgt, SETTINGS, ignore)
    draws = fixed_draws(ToyDenoiser(), x0)
    after_a = mean_loss(objective, ToyDenoiser(), x0, e_opt, draws)
    changes = gain_changes()
    denoiser = Weighted(changes)
    finetune_model(denoiser, x0, e_opt, changes, SETTINGS, ignore)
    assert mean_loss(objective, denoiser, x0, e_opt, draws) < after_a - 1e-4
    assert torch.equal(denoiser.gain, ToyDenoiser().gain)


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    still = replace(SETTINGS, learning_rate=0.0, steps=3)
    x0, e_tgt = photograph(), sentence()
    e_opt, _ = optimize_embedding(ToyDenoiser(), x0, e_tgt, still, ignore)
    assert all(torch.equal(a, b) for a, b in zip(e_opt.tensors(), e_tgt.tensors(), strict=True))
    changes = gain_changes()
    finetune_model(Weighted(changes), x0, e_tgt, changes, still, ignore)
    assert not changes["gain.weight"].difference.any()


def test_same_seed_same_result_and_another_seed_another() -> None:
    def run(seed):
        settings = replace(SETTINGS, seed=seed)
        return optimize_embedding(ToyDenoiser(), photograph(), sentence(), settings, ignore)[0]

    assert torch.equal(run(1).tokens, run(1).tokens)
    assert not torch.equal(run(1).tokens, run(2).tokens)


class Pulled(ToyDenoiser):
    """Remembers the gradients that reach the tokens, one of each micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = []

    def predict(self, x_t, sigma, embedding):
        embedding.tokens.register_hook(self.gradients.append)
        return super().predict(x_t, sigma, embedding)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_micro_batch_bounds_the_memory_and_not_the_result(micro_batch: int) -> None:
    whole, parts = Pulled(), Pulled()
    one, losses = replace(SETTINGS, steps=1), []
    for denoiser, settings in ((whole, one), (parts, replace(one, micro_batch=micro_batch))):
        losses += optimize_embedding(denoiser, photograph(), sentence(), settings, ignore)[1]
    assert max(whole.calls) == 4 and max(parts.calls) == micro_batch
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    (expected,), found = whole.gradients, sum(parts.gradients)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_each_step_is_reported_and_a_raise_ends_the_training() -> None:
    class Cancelled(Exception):
        pass

    seen = []

    def cancel(progress) -> None:
        seen.append(progress)
        if progress.step == 3:
            raise Cancelled

    denoiser = ToyDenoiser()
    with pytest.raises(Cancelled):
        optimize_embedding(denoiser, photograph(), sentence(), SETTINGS, cancel)
    assert [p.step for p in seen] == [1, 2, 3] and len(denoiser.calls) == 3
    assert seen[0].steps == SETTINGS.steps and seen[0].estimate.shape == (4, 3, 4, 5)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="learning rate"):
        settings = replace(SETTINGS, learning_rate=1e30)
        changes = gain_changes()
        finetune_model(Weighted(changes), photograph(), sentence(), changes, settings, ignore)


LAYERS = {
    "in": torch.nn.Conv2d(3, 4, 2),
    "block.attn1.to_q": torch.nn.Linear(4, 4),
    "block.norm": torch.nn.LayerNorm(4, bias=False),
}


@pytest.mark.parametrize(
    ("method", "moved"),
    [
        ("full", {"in.weight", "in.bias", "block.norm.weight"}),
        ("attention", set()),
        ("lora", {"in.weight"}),
    ],
)
def test_methods_move_what_they_say(method: str, moved: set[str]) -> None:
    changes = choose_changes(method, LAYERS, lambda layer: torch.nn.Identity())
    attention = {"block.attn1.to_q.weight", "block.attn1.to_q.bias"}
    moved = moved | (attention - {"block.attn1.to_q.bias"} if method == "lora" else attention)
    assert set(changes) == moved
    low_rank = {name for name, c in changes.items() if isinstance(c, torch.nn.Identity)}
    assert low_rank == (moved if method == "lora" else set())


def test_unknown_method_and_nothing_to_move_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown method 'half'.*lora, attention, full"):
        choose_changes("half", LAYERS, torch.nn.Identity)
    with pytest.raises(ValueError, match="no weights that method 'attention'"):
        choose_changes("attention", {"in": LAYERS["in"]}, torch.nn.Identity)


@pytest.mark.parametrize("eta", [-0.5, 0.0, 0.3, 0.7, 1.0, 1.5])
def test_interpolation_is_equation_4_for_tokens_and_pooled(eta: float) -> None:
    target, optimized = sentence(), Embedding(torch.zeros(1, 6, 4), torch.ones(1, 2))
    e = interpolate(target, optimized, eta)
    torch.testing.assert_close(e.tokens, eta * target.tokens)
    torch.testing.assert_close(e.pooled, eta * target.pooled + (1 - eta))


def test_projection_keeps_identity_and_edit_apart() -> None:
    target, optimized = sentence(), Embedding(*(t + 1 for t in sentence().tensors()))
    edits = [project(target, optimized, 0.0, 1.0), project(target, optimized, 0.0, 2.0)]
    for tgt, opt, one, two in zip(
        target.tensors(), optimized.tensors(), *(e.tensors() for e in edits), strict=True
    ):
        # The edit is orthogonal to the photograph, and with what lies along it makes the target.
        torch.testing.assert_close(
            (one * opt).sum(-1), torch.zeros(one.shape[:-1]), atol=1e-5, rtol=0
        )
        along = (tgt * opt).sum(-1, keepdim=True) / (opt * opt).sum(-1, keepdim=True)
        torch.testing.assert_close(one + along * opt, tgt)
        torch.testing.assert_close(two, 2 * one)
    kept = project(target, optimized, 1.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(kept.tensors(), optimized.tensors(), strict=True))
    with pytest.raises(ValueError, match="shape"):
        project(sentence(True), sentence(False), 1.0, 1.0)


def test_text_of_further_encoders_is_interpolated_by_name() -> None:
    def wide(**more: torch.Tensor) -> Embedding:
        return Embedding(torch.zeros(1, 6, 4), None, more)

    one, two = torch.ones(1, 3, 2), torch.full((1, 2, 2), 3.0)
    e = interpolate(wide(a=one, b=two), wide(b=0 * two, a=0 * one), 0.25)
    assert torch.equal(e.more["a"], one / 4) and torch.equal(e.more["b"], two / 4)
    with pytest.raises(ValueError, match="'b'"):
        interpolate(wide(a=one), wide(a=one, b=two), 0.5)


def test_interpolation_needs_equal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 6, 4\).*\(1, 7, 4\)"):
        interpolate(sentence(False), Embedding(torch.zeros(1, 7, 4)), 0.5)
    with pytest.raises(ValueError, match="shape"):
        interpolate(sentence(True), sentence(False), 0.5)
