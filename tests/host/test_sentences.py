"""Another sentence of another number of tokens for what was learned."""

from __future__ import annotations

import logging

import pytest
import torch
from families import kinds

from host import given


@pytest.mark.parametrize("tokens", [(154, 77), (77, 154)])
def test_both_ends_of_eta_stay_what_they_are(nodes, model, tokens, caplog):
    """The model sees the photograph's own embedding at eta 0 and the sentence's at eta 1."""
    target, optimized = (given.conditioning(i, tokens=count) for i, count in enumerate(tokens))
    latent = given.latent()
    ends = [nodes.loss(model, c, latent, 2) for c in (optimized, target)]
    with caplog.at_level(logging.INFO, "comfyui-imagic"):
        mixed = [nodes.interpolate(target, optimized, eta)[0] for eta in (0.0, 1.0, 0.5)]
    found = [nodes.loss(model, c, latent, 2) for c in mixed]
    assert found[:2] == pytest.approx(ends, rel=1e-5)
    assert found[2] not in (pytest.approx(ends[0], rel=1e-5), pytest.approx(ends[1], rel=1e-5))
    first, second = tokens
    assert f"'target' has {first} tokens and 'optimized' {second}: both continued to 154" in (
        caplog.text
    )


def test_a_text_that_is_not_padded_works_in_every_node(nodes, tmp_path, comfy):
    family, model = kinds.load("pixart", tmp_path)
    target, optimized = (kinds.conditioning(family, count, seed=count) for count in (9, 16))
    latent = kinds.latent(family, seed=2)
    for made in (
        [nodes.interpolate(target, optimized, 0.5)[0]],
        nodes.call("ImagicEtaSweep", target, optimized, 0.0, 1.0, 2)[0],
        nodes.call("ImagicProjectConditioning", target, optimized, 1.0, 1.0),
    ):
        for one in made:
            assert one[0][0].shape == (1, 16, family.context_width)
            assert torch.isfinite(torch.tensor(nodes.loss(model, one, latent, 1)))


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (([1, 1, 0], [1, 1, 1, 0, 0]), [1, 1, 1, 0, 0]),
        (([1, 1, 1], [1, 1, 1, 0, 0]), [1, 1, 1, 1, 1]),
        (([0, 1, 0], [0, 0, 1, 1, 0]), [0, 1, 1, 1, 0]),
        ((None, [1, 1, 1, 0, 0]), None),
        (([1, 1, 0], None), None),
    ],
)
def test_attention_masks_follow(nodes, masks, expected):
    pair = [given.conditioning(i, tokens=count) for i, count in enumerate((3, 5))]
    for conditioning, mask in zip(pair, masks, strict=True):
        if mask is not None:
            conditioning[0][1]["attention_mask"] = torch.tensor([mask])
    ((_, options),) = nodes.interpolate(*pair, 0.5)[0]
    found = options.get("attention_mask")
    assert (None if found is None else found[0].tolist()) == expected
