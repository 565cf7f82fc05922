"""Stages A, B and C, then the host's KSampler, on every model family."""

from __future__ import annotations

import pytest
import torch
from families import kinds

from host import given

RATES = {"full": 2e-3, "lora": 1e-2}


@pytest.fixture(scope="module")
def stage_a(nodes, loaded):
    family, model = loaded
    with torch.inference_mode():
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    optimized, _ = nodes.optimize(model, target, image, 6, 2e-2, 0, batch_size=2)
    return nodes, target, image, optimized


def test_stage_a_learns_all_that_the_model_uses(loaded, stage_a):
    family, model = loaded
    nodes, target, image, optimized = stage_a
    assert nodes.loss(model, optimized, image, 4) < nodes.loss(model, target, image, 4)
    pooled = [c[0][1]["pooled_output"] for c in (target, optimized)]
    if pooled[0] is None:
        assert pooled[1] is None
    else:
        assert torch.equal(*pooled) is not family.uses_pooled
    others = [
        {k: v for k, v in c[0][1].items() if k not in ("pooled_output", "imagic_origin")}
        for c in (target, optimized)
    ]
    given.assert_same(others[1], others[0])


@pytest.mark.parametrize("method", RATES)
def test_stage_b_then_c_then_the_hosts_sampler(loaded, stage_a, method):
    import nodes as host_nodes

    family, model = loaded
    nodes, target, image, optimized = stage_a
    before, after_a = given.weights(model), nodes.loss(model, optimized, image, 4)
    tuned, lora, _ = nodes.finetune(
        model, optimized, image, method, 6, RATES[method], 0, batch_size=2, save_memory="on"
    )
    assert nodes.loss(tuned, optimized, image, 4) < after_a
    (edit,) = nodes.interpolate(target, optimized, 0.7)
    with torch.inference_mode():
        pictures = [
            host_nodes.common_ksampler(
                m, 5, 2, 2.0, "euler", "simple", edit, kinds.conditioning(family, seed=9), image
            )[0]["samples"]
            for m in (model, tuned)
        ]
    assert pictures[1].shape == image["samples"].shape and torch.isfinite(pictures[1]).all()
    assert not torch.equal(*pictures)
    given.assert_weights(model, before)


def test_the_loss_is_that_of_the_hosts_own_sampling(loaded, stage_a):
    family, model = loaded
    nodes, target, image, _ = stage_a
    # The noise that upscalers add to their low-resolution picture is another in each pass.
    target = [[target[0][0], {**target[0][1], "noise_augmentation": 0.0}]]
    expected = nodes.sampled_loss(model, target, image, 4, family.predicts)
    assert nodes.loss(model, target, image, 4) == pytest.approx(expected, rel=1e-3)


def test_recomputing_blocks_gives_the_same_gradient(loaded, stage_a):
    _, model = loaded
    nodes, target, image, _ = stage_a
    given.assert_recomputing_changes_nothing(nodes, model, target, image)
