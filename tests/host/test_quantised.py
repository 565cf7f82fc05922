"""Quantised checkpoints, the form that owners of small cards have: the same edit on all of them."""

from __future__ import annotations

import pytest
import torch
from families import kinds, quantised
from machine import imagic

GGUF = "gguf"


@pytest.fixture(scope="module", params=[*quantised.FORMS, GGUF])
def loaded(request, comfy, comfyui_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    if request.param == GGUF:
        gguf = quantised.gguf_pack(comfyui_folder)
        if gguf is None:
            pytest.skip("no ComfyUI-GGUF; set COMFYUI_GGUF to where it lies")
        return quantised.load_gguf("sd3", gguf, folder)
    if request.param in quantised.LAYOUTS and not quantised.are_known():
        pytest.skip(f"this ComfyUI does not know {request.param}")
    return quantised.load("sd3", request.param, folder)


@pytest.fixture(scope="module")
def stage_a(pack, loaded):
    family, model = loaded
    nodes = imagic.Pack(pack)
    text, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    optimized, _ = nodes.optimize(model, text, image, 6, 2e-2, 0)
    return nodes, text, image, optimized


def test_weights_are_quantised_and_training_sees_what_is_sampled(loaded, stage_a):
    _, model = loaded
    nodes, text, image, optimized = stage_a
    quantised_layers = [
        layer
        for layer in model.model.diffusion_model.modules()
        if hasattr(layer, "weight_function")
        and layer.weight is not None
        and nodes.host.weights.is_quantised(layer, layer.weight)
    ]
    assert len(quantised_layers) > 10
    after = nodes.loss(model, optimized, image, 4)
    assert after < nodes.loss(model, text, image, 4)
    assert nodes.sampled_loss(model, optimized, image, 4) == pytest.approx(after, rel=1e-5)


def test_lora_is_handed_over_exactly(loaded, stage_a):
    _, model = loaded
    nodes, _, image, optimized = stage_a
    before, ended, handed_over = nodes.hand_off(
        model, optimized, image, "lora", steps=10, rate=0.03
    )
    assert ended < before * 0.99, "nothing was learned, so nothing is shown"
    assert handed_over == pytest.approx(ended, rel=2e-5)


def test_what_was_learned_can_be_turned_down(loaded, stage_a):
    _, model = loaded
    nodes, _, image, optimized = stage_a
    tuned, lora, _ = nodes.finetune(model, optimized, image, "lora", 6, 4e-2, 0)
    strength = nodes.nodes["ImagicFinetuneStrength"]
    (whole,) = strength.execute(model, lora, 1.0, 1.0, 1.0).result
    (none,) = strength.execute(model, lora, 0.0, 0.0, 0.0).result
    plain = nodes.loss(model, optimized, image, 4)
    learned = nodes.loss(tuned, optimized, image, 4)
    assert learned < plain * 0.99
    assert nodes.loss(whole, optimized, image, 4) == pytest.approx(learned, rel=1e-5)
    assert nodes.loss(none, optimized, image, 4) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("method", ["full", "attention"])
def test_differences_of_quantised_weights_are_refused(loaded, stage_a, method):
    _, model = loaded
    nodes, _, image, optimized = stage_a
    message = f"^Imagic Fine-tune Model: 'model' is quantised .*{method}.*choose method 'lora'"
    with pytest.raises(ValueError, match=message):
        nodes.finetune(model, optimized, image, method, 1, 1e-4, 0)


def test_recomputed_blocks_give_the_same_embedding(loaded, stage_a):
    _, model = loaded
    nodes, text, image, _ = stage_a
    kept, again = (
        nodes.optimize(model, text, image, 1, 2e-2, 0, save_memory=how)[1]["loss"]
        for how in ("off", "on")
    )
    assert torch.allclose(torch.tensor(kept), torch.tensor(again), rtol=1e-5)


def test_layers_into_which_newer_hosts_fold_an_activation_count(
    nodes, comfyui_folder, tmp_path_factory
):
    """The host passes their int8 weights by itself, and never calls them."""
    import comfy.ops

    if not hasattr(comfy.ops, "linear_input_act"):
        pytest.skip("this ComfyUI folds no activation into a layer")
    family, model = quantised.load("wan21", "int8_tensorwise", tmp_path_factory.mktemp("wan"))
    text, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    folded, generator = "diffusion_model.blocks.0.ffn.2", torch.Generator().manual_seed(0)
    width, inner = model.model.get_submodule(folded).weight.shape
    lora = {
        f"{folded}.lora_up.weight": torch.randn(width, 4, generator=generator) / 2,
        f"{folded}.lora_down.weight": torch.randn(4, inner, generator=generator) / inner**0.5,
    }
    own = comfy.ops.linear_input_act
    tuned, other = (nodes.host.apply_lora(model, lora, share) for share in (1.0, -0.5))
    plain, changed, less = (
        nodes.sampled_loss(one, text, image, 2) for one in (model, tuned, other)
    )
    assert abs(changed - plain) > 1e-2 * plain and abs(less - changed) > 1e-2 * plain
    # Training calls the layer, so sampling has to give what training sees.
    assert nodes.loss(tuned, text, image, 2) == pytest.approx(changed, rel=1e-4)
    assert nodes.sampled_loss(model, text, image, 2) == plain
    assert comfy.ops.linear_input_act is own
