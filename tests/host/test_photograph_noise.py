"""Drawing from the photograph's own noise."""

from __future__ import annotations

import copy

import pytest
import torch
from families import kinds

from host import given


def begun(nodes, model, text, image, share, *, tuned=None):
    return nodes.call("ImagicPhotographNoise", tuned or model, model, text, image, share)[0]


def draw(nodes, model, text, latent, *, seed=5, steps=20, denoise=1.0):
    how = (seed, steps, 1.0, "euler", "simple")
    return nodes.call("KSampler", model, *how, text, text, latent, denoise)[0]["samples"]


@pytest.fixture(scope="module")
def wired():
    return given.conditioning(), given.latent()


def test_every_family_draws_the_photograph_from_it_whatever_the_seed(nodes, loaded):
    family, model = loaded
    before = given.weights(model)
    with torch.inference_mode():
        text, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    own, mixed = (begun(nodes, model, text, image, share) for share in (1.0, 0.5))
    empty = {"samples": torch.zeros_like(image["samples"])}
    drawn = draw(nodes, own, text, empty)
    # The upscaler's seed is of the noise on its small picture, too.
    assert drawn.equal(draw(nodes, own, text, empty, seed=6)) or family.name == "x4_upscaler"
    halfway, others = (draw(nodes, m, text, empty) for m in (mixed, model))
    photograph = image["samples"]
    near, middle, far = ((p - photograph).square().mean() for p in (drawn, halfway, others))
    assert near < 0.1 * far and near < middle
    given.assert_weights(model, before)


def test_at_0_it_is_the_seeds_own_and_between_both_count(nodes, model, wired):
    text, image = wired
    empty = {"samples": torch.zeros(2, 4, 8, 8)}
    plain = draw(nodes, model, text, empty, steps=2)
    assert draw(nodes, begun(nodes, model, text, image, 0.0), text, empty, steps=2).equal(plain)
    half = begun(nodes, model, text, image, 0.5)
    pictures = [draw(nodes, half, text, empty, steps=2, seed=s) for s in (5, 5, 6)]
    assert pictures[0].equal(pictures[1]) and not pictures[0].equal(pictures[2])
    assert not pictures[0].equal(plain) and not pictures[0][0].equal(pictures[0][1])


def test_noises_are_mixed_in_their_variance(nodes):
    mixed = nodes.host.own_noise._Beginning(torch.randn(1, 4, 64, 64), 0.3).mixed
    noise = torch.randn(2, 4, 64, 64)
    assert mixed(noise).std() == pytest.approx(1, abs=0.02)
    assert (mixed(noise) * noise).mean() == pytest.approx(0.7**0.5, abs=0.02)


def test_each_picture_of_a_batch_begins_with_the_next_photograph(nodes, model, wired):
    text, _ = wired
    both = given.latent(count=2)
    apart = [{"samples": one[None]} for one in both["samples"]]
    together = begun(nodes, model, text, both, 1.0)
    drawn = draw(nodes, together, text, {"samples": torch.zeros(3, 4, 8, 8)})
    alone = [
        draw(nodes, begun(nodes, model, text, one, 1.0), text, {"samples": torch.zeros(1, 4, 8, 8)})
        for one in apart
    ]
    for found, expected in zip(drawn, (alone[0], alone[1], alone[0]), strict=True):
        assert given.apart([found], [expected[0]]) < 1e-3


def test_what_goes_on_from_a_picture_or_brings_no_noise_is_left(nodes, model, wired):
    text, image = wired
    own = begun(nodes, model, text, image, 1.0)
    larger = given.latent(size=(12, 8))
    drawn = [draw(nodes, m, text, larger, steps=4, denoise=0.5) for m in (own, model)]
    assert drawn[0].equal(drawn[1])
    how = ("disable", 5, 2, 1.0, "euler", "simple", text, text, larger, 0, 10_000, "disable")
    drawn = [nodes.call("KSamplerAdvanced", m, *how)[0]["samples"] for m in (own, model)]
    assert drawn[0].equal(drawn[1])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_sampler_that_adds_noise_of_its_own_is_told_of(nodes, model, wired, sampler, caplog):
    text, image = wired
    own, empty = begun(nodes, model, text, image, 0.5), {"samples": torch.zeros(1, 4, 8, 8)}
    nodes.call("KSampler", own, 5, 2, 1.0, sampler, "simple", text, text, empty, 1.0)
    told = f"({sampler}) adds noise of its own" in caplog.text
    assert told == (sampler in ("euler_ancestral", "dpmpp_2m_sde"))


def test_another_size_is_refused_by_name(nodes, model, wired):
    text, image = wired
    own = begun(nodes, model, text, image, 0.5)
    with pytest.raises(ValueError, match=r"Imagic Photograph's Noise: .*4 x 8 x 8.*4 x 12 x 8"):
        draw(nodes, own, text, {"samples": torch.zeros(1, 4, 12, 8)})


def test_a_sentence_of_another_model_is_refused_before_anything_is_drawn(nodes, model, wired):
    _, image = wired
    told = r"Imagic Photograph's Noise: .*\(1, 4, 8, 8\) under 'optimized'; wire the model"
    with pytest.raises(ValueError, match=told):
        begun(nodes, model, given.conditioning(width=2048), image, 0.5)
    with pytest.raises(ValueError, match="Imagic Photograph's Noise: 'image' is an empty latent"):
        begun(nodes, model, wired[0], {"samples": torch.zeros(1, 4, 8, 8)}, 0.5)


def test_the_last_one_counts_and_what_comes_in_stays(nodes, model, wired):
    text, image = wired
    kept = copy.deepcopy((text, image))
    first = begun(nodes, model, text, given.latent(seed=3), 1.0)
    wrappers = copy.copy(first.wrappers)
    again = begun(nodes, model, text, image, 0.5, tuned=first)
    expected = begun(nodes, model, text, image, 0.5)
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    pictures = [draw(nodes, m, text, empty) for m in (again, expected, first)]
    assert pictures[0].equal(pictures[1]) and not pictures[0].equal(pictures[2])
    assert first.wrappers == wrappers and not model.wrappers
    given.assert_same(list(kept), [text, image])


def test_it_trains_as_the_model_without_it(nodes, model, wired):
    text, image = wired
    own = begun(nodes, model, text, image, 0.5)
    found, expected = (nodes.optimize(m, text, image, 2, 0.1, 0)[0] for m in (own, model))
    given.assert_same(found, expected)
