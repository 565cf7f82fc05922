"""What models and other nodes do that a plain model does not: one representative of each kind."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch
from families import kinds
from families.newer import NEWER

from host import given

FAMILIES = kinds.FAMILIES | NEWER


@pytest.fixture(scope="module")
def family(comfy, tmp_path_factory):
    """Loads a family by its name, once; skips where the host does not have it."""
    loaded = {}

    def load(name):
        if not FAMILIES[name].is_known():
            pytest.skip(f"this ComfyUI has no {FAMILIES[name].title}")
        if name not in loaded:
            loaded[name] = kinds.load(name, tmp_path_factory.mktemp(name))
        of_kind, model = loaded[name]
        with torch.inference_mode():
            target, image = kinds.conditioning(of_kind, seed=1), kinds.latent(of_kind, seed=2)
        return model, target, image

    return load


@pytest.fixture(scope="module")
def small(family):
    """The smallest: Stable Diffusion 3."""
    return family("sd3")


def test_kernels_without_a_gradient_are_replaced_and_put_back(nodes, family):
    pytest.importorskip("comfy_kitchen", reason="this ComfyUI has no kernels of its own")
    model, target, image = family("cosmos_predict2")
    kernels = torch.ops.comfy_kitchen
    if not hasattr(kernels, "rms_rope_split_half"):
        pytest.skip("this ComfyUI has no kernels without a gradient")
    before = {name: getattr(kernels, name) for name in ("rms_rope_split_half", "apply_rope1")}
    optimized, _ = nodes.optimize(model, target, image, 4, 2e-2, 0)
    assert nodes.loss(model, optimized, image, 4) < nodes.loss(model, target, image, 4)
    assert all(getattr(kernels, name) is kernel for name, kernel in before.items())


@torch.library.custom_op("imagic_tests::blind", mutates_args=())
def _blind(x: torch.Tensor) -> torch.Tensor:
    return x * 1


def test_any_other_kernel_without_a_gradient_is_named(nodes, small):
    model, target, image = small
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, a: _blind(apply(a["input"], a["timestep"], **a["c"]))
    )
    with pytest.raises(ValueError, match=r"^Imagic Optimize Embedding: 'model'.*imagic_tests"):
        nodes.optimize(model, target, image, 1, 1e-2, 0)


def _darker(kind, model):
    """A clone whose predictions are 0.8 times, by each way to put a function around them."""
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    if kind == "function":
        model.set_model_unet_function_wrapper(
            lambda apply, a: 0.8 * apply(a["input"], a["timestep"], **a["c"])
        )
    else:
        kind = WrappersMP.APPLY_MODEL if kind == "apply" else WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(kind, "dark", lambda run, *a, **k: 0.8 * run(*a, **k))
    return model


@pytest.mark.parametrize("kind", ["function", "apply", "network"])
def test_functions_around_the_model_count_as_they_do_when_sampled(nodes, model, kind):
    target, image = given.conditioning(), given.latent()
    darker = _darker(kind, model)
    plain, changed = nodes.loss(model, target, image, 4), nodes.loss(darker, target, image, 4)
    assert changed != pytest.approx(plain, rel=1e-2)
    assert changed == pytest.approx(nodes.sampled_loss(darker, target, image, 4, "noise"), rel=1e-3)
    optimized, _ = nodes.optimize(darker, target, image, 4, 2e-2, 0)
    assert nodes.loss(darker, optimized, image, 4) < changed


@pytest.mark.parametrize("key", ["easycache", "torch.compile"])
def test_functions_that_only_save_time_are_passed_over(nodes, model, key):
    from comfy.patcher_extension import WrappersMP

    target, image = given.conditioning(), given.latent()
    quick = model.clone()

    def stale(run, x, *args, **kwargs):
        return torch.zeros_like(x)

    quick.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, stale)
    assert nodes.loss(quick, target, image, 2) == nodes.loss(model, target, image, 2)


def test_a_function_that_no_gradient_passes_is_named(nodes, small):
    model, target, image = small
    model = model.clone()

    def without_gradient(apply, a):
        with torch.no_grad():
            return apply(a["input"], a["timestep"], **a["c"])

    model.set_model_unet_function_wrapper(without_gradient)
    with pytest.raises(ValueError, match=r"'model', a SD3 \(with .*without_gradient around it\)"):
        nodes.optimize(model, target, image, 1, 1e-2, 0)


def test_a_layer_that_sampling_passes_by_is_named(nodes, small, monkeypatch):
    """What a host folds into a kernel of its own is called in training alone."""
    model, target, image = small
    mlp = model.model.diffusion_model.joint_blocks[0].x_block.mlp
    called = mlp.fc2.forward

    def passed_by(x):
        layer, x = mlp.fc2, mlp.act(mlp.fc1(x))
        if torch.is_grad_enabled():
            return layer(x)
        return torch.nn.functional.linear(x, layer.weight, layer.bias)

    monkeypatch.setattr(mlp, "forward", passed_by)
    message = r"^Imagic Fine-tune Model: 'model', a SD3, computes with \S+x_block.mlp.fc2.weight by"
    with pytest.raises(ValueError, match=message):
        nodes.finetune(model, target, image, "lora", 1, 1e-4, 0)
    nodes.finetune(model, target, image, "full", 1, 1e-6, 0)
    assert mlp.fc2.forward == called


def test_text_of_every_encoder_is_learned_and_interpolated(nodes, family):
    model, target, image = family("hunyuan_dit")
    optimized, _ = nodes.optimize(model, target, image, 3, 2e-2, 0)
    (edit,) = nodes.interpolate(target, optimized, 0.25)
    name = "conditioning_mt5xl"
    tgt, opt, mixed = (c[0][1][name] for c in (target, optimized, edit))
    assert (opt != tgt).float().mean() > 0.9
    torch.testing.assert_close(mixed, 0.25 * tgt + 0.75 * opt)
    masks = [c[0][1]["attention_mask_mt5xl"] for c in (target, optimized, edit)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("name", ["ltxv", "hunyuan_dit", "pixeldit"])
def test_networks_that_change_tensors_in_place(nodes, family, name):
    """One draw at a time, so that nothing repeats the text, which is a leaf of autograd's."""
    model, target, image = family(name)
    optimized, _ = nodes.optimize(model, target, image, 2, 1e-2, 0, batch_size=1)
    assert not torch.equal(optimized[0][0], target[0][0])
    kept = nodes.gradients(model, target, image)
    for other in ({"recompute": True}, {"at_once": 1}):
        found = nodes.gradients(model, target, image, **other)
        assert found.keys() == kept.keys()
        # Of a gradient that is nothing, such as by the bias of keys, only rounding is left.
        least = 1e-4 * sum(gradient.norm() ** 2 for gradient in kept.values()) ** 0.5
        for key in kept:
            apart = (found[key] - kept[key]).norm()
            assert apart < 1e-3 * max(kept[key].norm(), least), (other, key)


@contextmanager
def _compiled_middle(model):
    """As torch.compile leaves a module: with a forward of its own."""
    middle = model.model.diffusion_model.joint_blocks[0]
    compiled = middle.forward = torch.compile(middle.forward, backend="eager")
    try:
        yield middle, compiled
    finally:
        del middle.forward


def test_a_compiled_block_is_as_it_was_after_saving_memory(nodes, small):
    model, target, image = small
    plain = nodes.gradients(model, target, image)
    with _compiled_middle(model) as (block, compiled):
        recomputed = nodes.gradients(model, target, image, recompute=True)
        assert vars(block)["forward"] is compiled
    assert "forward" not in vars(block)
    assert given.apart([recomputed["tokens"]], [plain["tokens"]]) < 1e-4


@pytest.mark.parametrize("sampling", ["lcm", "x0", "v_prediction"])
def test_model_sampling_nodes(nodes, comfy, model, sampling):
    """LCM's wants a flat sigma; all must be passed as the host's own sampling does."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    with torch.inference_mode():
        (patched,) = ModelSamplingDiscrete().patch(model, sampling, zsnr=False)
    target, image = given.conditioning(), given.latent()
    optimized, _ = nodes.optimize(patched, target, image, 6, 1e-2, 0)
    assert nodes.loss(patched, optimized, image, 8) < nodes.loss(patched, target, image, 8)


def test_a_schedule_that_is_a_list_of_timesteps_is_drawn_as_it_is(nodes, model, small):
    for one in (model, small[0]):
        sampling = one.get_model_object("model_sampling")
        assert torch.equal(nodes.host.training_sigmas(sampling), sampling.sigmas.float())


def test_a_schedule_even_in_log_sigma_is_not_drawn_where_nothing_is_to_learn(nodes, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    with torch.inference_mode():
        (patched,) = ModelSamplingContinuousEDM().patch(model, "v_prediction", 120.0, 0.002)
    listed = patched.get_model_object("model_sampling").sigmas
    drawn = nodes.host.training_sigmas(patched.get_model_object("model_sampling"))
    assert drawn[[0, -1]].tolist() == pytest.approx(listed[[0, -1]].tolist(), rel=1e-4)

    def outside(sigmas):
        return (sigmas < 0.13).float().mean(), (sigmas > 9.6).float().mean()

    assert outside(listed) == pytest.approx((0.38, 0.23), abs=0.01)
    assert outside(drawn) == pytest.approx((0.08, 0.06), abs=0.01)


def test_a_model_of_few_steps_is_warned_of(nodes, model, caplog):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    with torch.inference_mode():
        (patched,) = ModelSamplingDiscrete().patch(model, "lcm", zsnr=False)
    target, image = given.conditioning(), given.latent()
    with caplog.at_level(logging.WARNING, "comfyui-imagic"):
        nodes.optimize(model, target, image, 1, 1e-2, 0)
        assert not caplog.messages
        nodes.optimize(patched, target, image, 1, 1e-2, 0)
    assert [m for m in caplog.messages if "distilled to few steps (LCM sampling)" in m]


def test_a_model_that_reads_a_whole_sampling_is_refused(nodes, family):
    model, target, image = family("hunyuan_image_distilled")
    with pytest.raises(ValueError, match="'model', a HunyuanImage21, reads all steps.*connect"):
        nodes.optimize(model, target, image, 1, 1e-2, 0)


def test_a_model_that_reads_words_instead_of_embeddings_is_refused(nodes, family):
    model, target, image = family("hidream_o1")
    with pytest.raises(ValueError, match="'model', a HiDreamO1, takes nothing of the sentence"):
        nodes.optimize(model, target, image, 1, 1e-2, 0)


def test_a_failing_kernel_is_not_told_as_wrong_wiring(nodes, small):
    model, target, image = small
    broken = model.clone()

    def fails(_apply, _args):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    broken.set_model_unet_function_wrapper(fails)
    with pytest.raises(ValueError, match="'model', a SD3 .* fails by itself.*no kernel image"):
        nodes.optimize(broken, target, image, 1, 1e-2, 0)
    wider = [[torch.zeros(1, 16, 100), target[0][1]]]
    with pytest.raises(ValueError, match=r"cannot take 'target' with tokens \(1, 16, 100\)"):
        nodes.optimize(model, wider, image, 1, 1e-2, 0)


def test_what_newer_hosts_remember_of_a_pass_is_switched_off(nodes, small, monkeypatch):
    import comfy.cli_args

    model, target, image = small
    watched, seen = model.clone(), []
    monkeypatch.setattr(comfy.cli_args.args, "disable_comfy_compiler", False, raising=False)

    def watch(apply, a):
        cache = a["c"]["transformer_options"].get("qwen_image21_cache")
        seen.append((cache, comfy.cli_args.args.disable_comfy_compiler))
        return apply(a["input"], a["timestep"], **a["c"])

    watched.set_model_unet_function_wrapper(watch)
    nodes.optimize(watched, target, image, 1, 1e-2, 0)
    assert seen[-1] == ({"device": "off"}, True)
    assert comfy.cli_args.args.disable_comfy_compiler is False
