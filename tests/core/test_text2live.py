"""Text2LIVE with eyes of a few numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagic_core.text2live import SCREEN, Layer, Settings, Told, paint, self_similarity

RED, GREY = torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.5, 0.5, 0.5])
TOLD = Told(RED, RED, GREY)
PHOTOGRAPH = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def see(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The mean colour, and those of 4 x 4 parts."""
    parts = F.adaptive_avg_pool2d(pictures, 4).flatten(2).mT
    return parts.mean(1), parts


def run(**how: float) -> tuple[Layer, list[float], list[Tensor]]:
    shown: list[Tensor] = []
    settings = Settings(**{"steps": 40, "learning_rate": 1e-2, "seed": 1, "views": 2} | how)
    layer, losses = paint(PHOTOGRAPH, see, TOLD, settings, lambda p: shown.append(p.estimate))
    return layer, losses, shown


def test_it_is_painted_towards_the_sentence():
    layer, losses, shown = run()
    before, after = (F.cosine_similarity(see(p)[0], RED[None]).item()
                     for p in (PHOTOGRAPH, layer.over(PHOTOGRAPH)))  # fmt: skip
    assert after > before + 0.1 and losses[-1] < losses[0]
    assert len(shown) == 40 and all(one.shape[:2] == (1, 3) for one in shown)
    assert layer.colour.shape == PHOTOGRAPH.shape and layer.opacity.shape == (1, 1, 24, 32)


def test_the_photograph_returns_where_nothing_was_painted():
    layer = Layer(torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    ground = torch.tensor(SCREEN).view(1, 3, 1, 1)
    assert torch.equal(layer.over(ground), ground.expand(1, 3, 4, 4))


def test_the_seed_decides_and_the_generator_of_all_stays():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (run(steps=2, seed=seed)[1] for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_many_views_are_as_one_loss():
    one, many = (run(steps=1, views=n)[1][0] for n in (1, 64))
    assert many == pytest.approx(one, rel=0.2)


def test_a_loss_that_is_no_number_ends_it():
    def blind(pictures: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(t * torch.nan for t in see(pictures))

    with pytest.raises(FloatingPointError, match="step 1 is nan.*learning rate 0.5"):
        paint(PHOTOGRAPH, blind, TOLD, Settings(3, 0.5), lambda _: None)


def test_self_similarity_is_blind_to_lengths():
    tokens = torch.randn(1, 5, 3)
    found = self_similarity(tokens)
    torch.testing.assert_close(found, self_similarity(tokens * 7))
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(1, 5))
