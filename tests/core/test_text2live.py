"""Text2LIVE with eyes of a few numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagic_core import text2live
from imagic_core.text2live import SCREEN, Layer, Painter, Settings, Told, paint, self_similarity

RED, GREY = torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.5, 0.5, 0.5])
GREEN = torch.tensor([0.3, 0.8, 0.2])
TOLD = Told(RED, RED, GREY)
PHOTOGRAPH = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))


class Eyes:
    """They see colours, and everything in the left third of a picture."""

    grey = 0.0

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The mean colour, and those of 4 x 4 parts, from grey on."""
        parts = F.adaptive_avg_pool2d(pictures, 4).flatten(2).mT
        return parts.mean(1), parts - self.grey

    def relevance(self, picture: Tensor, sentence: Tensor) -> Tensor:
        found = torch.zeros_like(picture[:, :1])
        found[..., : picture.shape[-1] // 3] = 1
        return found


EYES = Eyes()


def run(told: Told = TOLD, **how: float) -> tuple[Layer, list[float], list[Tensor]]:
    shown: list[Tensor] = []
    settings = Settings(**{"steps": 40, "learning_rate": 1e-2, "seed": 1, "views": 2} | how)
    layer, losses = paint(PHOTOGRAPH, EYES, told, settings, lambda p: shown.append(p.estimate))
    return layer, losses, shown


def test_it_is_painted_towards_the_sentence():
    layer, losses, shown = run()
    before, after = (F.cosine_similarity(EYES.see(p)[0], RED[None]).item()
                     for p in (PHOTOGRAPH, layer.over(PHOTOGRAPH)))  # fmt: skip
    assert after > before + 0.1 and losses[-1] < losses[0]
    assert len(shown) == 40 and all(one.shape[:2] == (1, 3) for one in shown)
    assert layer.colour.shape == PHOTOGRAPH.shape and layer.opacity.shape == (1, 1, 24, 32)


def test_it_is_painted_where_clip_sees_what_is_to_be_painted_over():
    where, anywhere = (run(told)[0].opacity for told in (TOLD._replace(region=GREY), TOLD))
    third = PHOTOGRAPH.shape[-1] // 3
    inside, outside = where[..., :third].mean(), where[..., third:].mean()
    assert inside > outside + 0.2 and outside < anywhere[..., third:].mean() - 0.1


@pytest.mark.parametrize("steps", [1, 4])
def test_the_losses_and_their_weights_are_those_of_the_papers_code(monkeypatch, steps):
    monkeypatch.setattr(text2live, "PHOTOGRAPH_COVER", 1.0)
    monkeypatch.setattr(text2live, "VIEW_COVER", 1.0)
    # All colours of the photograph are much alike, so that the structure's part would be nothing.
    monkeypatch.setattr(Eyes, "grey", 0.5)
    told = Told(RED, GREEN, GREY, region=GREY)
    # At a rate of nothing all steps are of the same layer; what falls is the weight of the place.
    losses = run(told, steps=steps, learning_rate=0.0)[1]
    found = []
    for picture in (PHOTOGRAPH, PHOTOGRAPH.flip(-1)):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            colour, opacity = Painter(24, 32)(picture)
        place = EYES.relevance(PHOTOGRAPH, GREY)
        place = place if picture is PHOTOGRAPH else place.flip(-1)
        over, screen = (
            opacity * colour + (1 - opacity) * ground
            for ground in (picture, torch.tensor([0, 177 / 255, 64 / 255]).view(1, 3, 1, 1))
        )
        similarity = [
            F.cosine_similarity(parts[:, :, None], parts[:, None], dim=-1)
            for parts in (EYES.see(p)[1] for p in (picture, over))
        ]
        seen, alone, before = (EYES.see(p)[0][0] for p in (over, screen, picture))
        clip = sum(
            1 - F.cosine_similarity(a, b, dim=0)
            for a, b in ((seen, RED), (seen - before, RED - GREY), (alone, GREEN))
        )
        pseudo_l0 = ((torch.sigmoid(opacity * 5) - 0.5) * 2).mean()
        sparse = 6 * (0.01 * opacity.mean() + 0.01 * pseudo_l0)
        structure = 2 * (similarity[0] - similarity[1]).square().mean()
        for step in range(steps):
            started = 10 * (1 - step / steps) * (opacity - place).square().mean()
            assert structure > 1e-3
            found.append((step, (clip + sparse + structure + started).item()))
    for step, loss in enumerate(losses):
        # Either as it is or flipped.
        assert min(abs(loss - value) for at, value in found if at == step) < 1e-4


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


def test_the_rate_falls_evenly_to_nothing(monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def noting(self: torch.optim.Adam, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    run(steps=4, learning_rate=0.4)
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_many_views_are_as_one_loss():
    one, many = (run(steps=1, views=n)[1][0] for n in (1, 64))
    assert many == pytest.approx(one, rel=0.2)


def test_a_loss_that_is_no_number_ends_it():
    class Blind(Eyes):
        def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            seen, tokens = super().see(pictures)
            return seen * torch.nan, tokens

    with pytest.raises(FloatingPointError, match="step 1 is nan.*learning rate 0.5"):
        paint(PHOTOGRAPH, Blind(), TOLD, Settings(3, 0.5), lambda _: None)


def test_self_similarity_is_blind_to_lengths():
    tokens = torch.randn(1, 5, 3)
    found = self_similarity(tokens)
    torch.testing.assert_close(found, self_similarity(tokens * 7))
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(1, 5))


def test_the_seed_draws_the_crops_too(monkeypatch):
    def same(*size: int) -> Painter:
        torch.manual_seed(0)
        return Painter(*size)

    monkeypatch.setattr(text2live, "Painter", same)
    one, again, other = (run(seed=seed, steps=4)[1] for seed in (1, 1, 2))
    assert one == again != other


def test_crops_lie_anywhere_and_cover_as_much_as_they_shall():
    rows = torch.arange(40.0).view(1, 1, 40, 1).expand(1, 1, 40, 40)
    pictures = torch.cat([rows, rows.mT], 1)
    generator = torch.Generator().manual_seed(0)
    crops = [text2live._crop(pictures, 0.5, generator) for _ in range(60)]
    sides = [crop.shape[-1] for crop in crops]
    assert min(sides) >= 20 and max(sides) <= 40 and len(set(sides)) > 8
    for corner in (0, 1):
        assert len({crop[0, corner, 0, 0].item() for crop in crops}) > 5


def test_no_step_is_of_the_gradients_before_it(monkeypatch):
    step, norms = torch.optim.Adam.step, []

    def watched(self: torch.optim.Adam) -> None:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    run(steps=8, learning_rate=0.0)
    assert max(norms) < 2 * norms[0]
