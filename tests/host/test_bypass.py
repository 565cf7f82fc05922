"""A fine-tuned MODEL and the base share one network: neither may be seen in the other."""

from __future__ import annotations

import gc

import pytest
import torch
from machine import imagic
from safetensors.torch import save_file

from host import given


@pytest.fixture(scope="module")
def tuned(nodes, model):
    """MODEL, LORA_MODEL, and the text and picture that were learned."""
    text, image = given.conditioning(), given.latent()
    found, lora, _ = nodes.finetune(model, text, image, "lora", 4, 4e-2, 0)
    return found, lora, text, image


@pytest.fixture(scope="module")
def losses(nodes, model, tuned):
    """Of the base and of the fine-tuned model, each sampled by the host."""
    found, _, text, image = tuned
    plain, learned = (nodes.sampled_loss(m, text, image, 2) for m in (model, found))
    assert learned < plain * 0.99
    return plain, learned


def changed_layers(model):
    return sum("forward" in vars(module) for module in model.model.modules())


def test_they_can_be_sampled_in_turn(nodes, model, tuned, losses):
    found, _, text, image = tuned
    for _ in range(2):
        assert nodes.sampled_loss(model, text, image, 2) == losses[0]
        assert nodes.sampled_loss(found, text, image, 2) == losses[1]


def test_a_model_that_is_forgotten_while_it_is_loaded_leaves_nothing(nodes, model, tuned, losses):
    _, lora, text, image = tuned
    other = nodes.host.apply_lora(model, lora, 0.5)
    halfway = nodes.sampled_loss(other, text, image, 2)
    assert halfway not in losses and changed_layers(model) > 0
    del other
    gc.collect()
    assert changed_layers(model) == 0
    assert nodes.sampled_loss(model, text, image, 2) == losses[0]


def test_clones_carry_it_and_others_can_be_put_on_top(nodes, model, tuned, losses):
    found, lora, text, image = tuned
    assert nodes.sampled_loss(found.clone(), text, image, 2) == losses[1]
    twice = nodes.host.apply_lora(found, lora, -1.0)
    assert nodes.sampled_loss(twice, text, image, 2) == pytest.approx(losses[0], rel=1e-5)
    assert nodes.sampled_loss(model, text, image, 2) == losses[0]
    assert nodes.sampled_loss(found, text, image, 2) == losses[1]


def test_what_it_gives_is_what_patched_weights_give(nodes, model, tuned, losses):
    import comfy.sd

    _, lora, text, image = tuned
    with torch.inference_mode():
        patched = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0)[0]
    assert nodes.sampled_loss(patched, text, image, 2) == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """A folder of the host's LoRA loader."""
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"})
    )
    return tmp_path


def test_a_lora_that_is_loaded_after_training_counts_beside_what_was_learned(
    nodes, model, tuned, losses, loras
):
    import comfy.sd

    found, lora, text, image = tuned
    generator = torch.Generator().manual_seed(5)
    other = {
        key: torch.randn(tensor.shape, generator=generator) / 15
        for key, tensor in lora.items()
        if not key.endswith("alpha")
    }
    save_file(other, loras / "other.safetensors")

    def loaded(one, strength=1.0):
        return nodes.call("LoraLoaderModelOnly", one, "other.safetensors", strength)[0]

    def loss(one):
        return nodes.sampled_loss(one, text, image, 2)

    after, before = loaded(found), nodes.host.apply_lora(loaded(model), lora)
    both = loss(after)
    assert both == pytest.approx(loss(before), rel=1e-5)
    for alone in (losses[1], loss(loaded(model))):
        assert both != pytest.approx(alone, rel=1e-2)
    # In one matrix after the other, by the host alone.
    with torch.inference_mode():
        expected = loaded(comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0)[0])
    assert both == pytest.approx(loss(expected), rel=1e-5)
    assert loss(loaded(after, -1.0)) == pytest.approx(losses[1], rel=1e-4)
    assert loss(found) == losses[1]


def test_a_saved_checkpoint_has_what_was_learned(nodes, model, tuned, losses, tmp_path):
    import comfy.sd

    found, _, text, image = tuned
    file = tmp_path / "saved.safetensors"
    with torch.inference_mode():
        comfy.sd.save_checkpoint(str(file), found)
        plain = tmp_path / "plain.safetensors"
        comfy.sd.save_checkpoint(str(plain), model)
    for path, expected in ((file, losses[1]), (plain, losses[0])):
        saved = given.load(path)
        assert nodes.sampled_loss(saved, text, image, 2) == pytest.approx(expected, rel=1e-5)
    assert nodes.sampled_loss(found, text, image, 2) == losses[1]
    assert nodes.sampled_loss(model, text, image, 2) == losses[0]
    assert "state_dict_for_saving" not in vars(model.model)


def test_a_fine_tuned_model_can_be_trained_further(nodes, model, tuned, losses):
    found, _, text, image = tuned
    further, _, _ = nodes.finetune(found, text, image, "lora", 4, 4e-2, 1)
    assert nodes.sampled_loss(further, text, image, 2) < losses[1]
    assert nodes.sampled_loss(found, text, image, 2) == losses[1]


def test_a_compiled_network_does_not_keep_it(nodes, model, tuned, losses):
    """What torch.compile remembers of one of them must not serve the other."""
    found, _, text, image = tuned

    def compiled(one):
        clone = one.clone()
        clone.add_object_patch(
            "diffusion_model",
            torch.compile(one.get_model_object("diffusion_model"), backend="eager"),
        )
        return nodes.sampled_loss(clone, text, image, 2)

    torch._dynamo.reset()
    assert compiled(found) == pytest.approx(losses[1], rel=1e-5)
    assert compiled(model) == pytest.approx(losses[0], rel=1e-5)
    assert compiled(found) == pytest.approx(losses[1], rel=1e-5)
    torch._dynamo.reset()


def test_the_same_lora_is_known_in_a_model_that_has_it(nodes, model, tuned):
    found, lora, _, _ = tuned
    assert nodes.host.has_lora(found, lora) and not nodes.host.has_lora(model, lora)
    assert nodes.host.base_hash(found) != nodes.host.base_hash(model)


def test_full_learns_as_much_on_half_precision_weights(pack, comfy, narrow_checkpoint):
    """At the paper's rate each step is far smaller than what the weights' format resolves."""
    nodes, text, image = imagic.Pack(pack), given.conditioning(), given.latent()
    falls = {}
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        model = given.load(narrow_checkpoint, dtype=kind)
        before, ended, handed = nodes.hand_off(
            model, text, image, "full", steps=20, rate=2e-6, batch_size=1, draws=4, relative=False
        )
        assert handed == pytest.approx(ended, rel=2e-5)
        falls[kind] = before - ended
    assert falls[torch.float32] > 0.01
    assert min(falls.values()) > 0.8 * falls[torch.float32]
