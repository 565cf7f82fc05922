"""Stages A and B on a real ComfyUI: what they learn, what they leave alone, what they refuse."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from host import given

STEPS, RATE = 6, 1e-2
RATES = {"full": 5e-3, "attention": 2e-2, "lora": 4e-2}


@pytest.fixture(scope="module")
def learned(nodes, model):
    """Stage A, run once: (target, latent, optimized, losses)."""
    target, latent = given.conditioning(), given.latent()
    optimized, losses = nodes.optimize(model, target, latent, 12, RATE, 0)
    return target, latent, optimized, losses


def test_stage_a_lowers_the_loss(nodes, model, learned):
    target, latent, optimized, losses = learned
    assert len(losses["loss"]) == 12
    assert nodes.loss(model, optimized, latent) < nodes.loss(model, target, latent) * 0.999


@pytest.mark.parametrize("method", RATES)
def test_stage_b_lowers_the_loss_further_in_a_copy(nodes, model, learned, method):
    _, latent, optimized, _ = learned
    before, after_a = given.weights(model), nodes.loss(model, optimized, latent)
    tuned, lora, losses = nodes.finetune(model, optimized, latent, method, STEPS, RATES[method], 0)
    assert nodes.loss(tuned, optimized, latent) < after_a * 0.98
    assert len(losses["loss"]) == STEPS
    assert nodes.loss(model, optimized, latent) == pytest.approx(after_a, rel=1e-6)
    given.assert_weights(model, before)
    assert tuned is not model and not model.patches


@pytest.mark.parametrize("method", RATES)
def test_lora_model_gives_the_same_model_through_the_hosts_own_nodes(
    nodes, model, learned, method, tmp_path, monkeypatch
):
    import comfy_extras.nodes_train as train
    import folder_paths

    from nodes import LoraLoaderModelOnly

    _, latent, optimized, _ = learned
    tuned, lora, _ = nodes.finetune(model, optimized, latent, method, 2, RATES[method], 0)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"})
    )
    with torch.inference_mode():
        train.SaveLoRA.execute(lora, "edit")
        (file,) = tmp_path.glob("edit*.safetensors")
        loaded = LoraLoaderModelOnly().load_lora_model_only(model, file.name, 1.0)[0]
    expected = nodes.loss(tuned, optimized, latent, 4)
    assert expected != pytest.approx(nodes.loss(model, optimized, latent, 4), rel=1e-4)
    assert nodes.loss(loaded, optimized, latent, 4) == pytest.approx(expected, rel=1e-6)


def test_learning_rate_zero_changes_nothing(nodes, model):
    target, latent = given.conditioning(), given.latent()
    optimized, _ = nodes.optimize(model, target, latent, 1, 0.0, 0)
    assert torch.equal(optimized[0][0], target[0][0])
    assert torch.equal(optimized[0][1]["pooled_output"], target[0][1]["pooled_output"])
    plain = nodes.loss(model, target, latent, 2)
    for method in RATES:
        tuned, _, _ = nodes.finetune(model, optimized, latent, method, 1, 0.0, 0)
        assert nodes.loss(tuned, target, latent, 2) == pytest.approx(plain, rel=1e-6)


def test_what_comes_in_is_not_altered(nodes, model):
    target, latent = given.conditioning(), given.latent()
    latent["noise_mask"] = torch.ones(1, 64, 64)
    before, had = given.weights(model), deepcopy((target, latent))
    optimized, _ = nodes.optimize(model, target, latent, 2, RATE, 0)
    kept = deepcopy(optimized)
    nodes.finetune(model, optimized, latent, "lora", 2, 4e-2, 0)
    nodes.interpolate(target, optimized, 0.5)
    given.assert_same((target, latent, optimized), (*had, kept))
    given.assert_weights(model, before)


class _Stop(Exception):
    """Stands for whatever may go wrong in the middle of a training."""


def test_same_seed_same_result(nodes, model):
    target, latent = given.conditioning(), given.latent()

    def run(seed):
        torch.manual_seed(seed + 50)  # the global generator must not matter
        optimized, _ = nodes.optimize(model, target, latent, 2, RATE, seed)
        _, lora, losses = nodes.finetune(model, optimized, latent, "lora", 2, 4e-2, seed)
        return optimized[0][0], lora, losses["loss"]

    first, other = run(3), None
    state = torch.get_rng_state()
    again = run(3)
    assert torch.equal(first[0], again[0]) and first[2] == again[2]
    assert all(torch.equal(first[1][k], again[1][k]) for k in first[1])
    other = run(4)
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(53)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_several_photographs(nodes, model):
    target, latent = given.conditioning(), given.latent(count=2)
    first = {"samples": latent["samples"][:1]}
    both, _ = nodes.optimize(model, target, latent, 3, RATE, 0)
    one, _ = nodes.optimize(model, target, first, 3, RATE, 0)
    assert not torch.equal(both[0][0], one[0][0])


def test_a_mask_says_where_to_be_faithful(nodes, model):
    target, latent = given.conditioning(), given.latent()
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    left = {**latent, "noise_mask": mask}
    other = {"samples": latent["samples"].clone(), "noise_mask": mask}
    with torch.inference_mode():
        other["samples"][..., 4:] += 1.0  # outside the mask
    a, b = (nodes.loss(model, target, x, 4) for x in (left, latent))
    assert a != pytest.approx(b, rel=1e-3)
    everywhere = {**latent, "noise_mask": torch.ones(1, 64, 64)}
    assert nodes.loss(model, target, everywhere, 4) == pytest.approx(b, rel=1e-5)


def test_recomputing_blocks_changes_nothing(nodes, model):
    target, latent = given.conditioning(), given.latent()
    given.assert_recomputing_changes_nothing(nodes, model, target, latent)


def test_saving_memory_learns_the_same(nodes, model):
    target, latent = given.conditioning(), given.latent()
    tokens, loras, losses = [], [], []
    for save_memory in ("off", "on"):
        optimized, a = nodes.optimize(model, target, latent, 2, RATE, 0, save_memory=save_memory)
        _, lora, b = nodes.finetune(
            model, target, latent, "lora", 2, 4e-2, 0, save_memory=save_memory
        )
        tokens.append(optimized[0][0] - target[0][0])
        loras.append([lora[key] for key in sorted(lora) if key.endswith("lora_down.weight")])
        losses.append(a["loss"] + b["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    # All of the movement, for Adam moves single numbers by what rounding leaves of their gradient.
    assert given.apart([tokens[1]], [tokens[0]]) < 0.02
    assert given.apart(loras[1], loras[0]) < 0.02


def test_out_of_memory_starts_over_with_recomputed_blocks(nodes, model, monkeypatch):
    # No device here runs out of memory at the right moment, so the first attempt is made to.
    host, modes = nodes.host, []
    real = host.trainable

    def starved(*args, **kwargs):
        modes.append(kwargs["recompute"])
        if not kwargs["recompute"]:
            raise torch.OutOfMemoryError("too little")
        return real(*args, **kwargs)

    monkeypatch.setattr(host, "trainable", starved)
    target, latent = given.conditioning(), given.latent()
    nodes.optimize(model, target, latent, 1, RATE, 0)
    assert modes == [False, True]
    with pytest.raises(RuntimeError, match="Imagic Optimize Embedding: not enough memory"):
        nodes.optimize(model, target, latent, 1, RATE, 0, save_memory="off")


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_progress_shows_every_step_and_a_picture_now_and_then(nodes, model, seconds, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kwargs: shown.append(args)
    )
    monkeypatch.setattr(nodes.module.nodes.progress, "SECONDS_BETWEEN_PICTURES", seconds)
    nodes.optimize(model, given.conditioning(), given.latent(), 3, RATE, 0)
    steps = [(value, total) for value, total, _ in shown]
    # Newer hosts pass over what has no picture and follows quickly.
    assert steps == [(1, 3), (2, 3), (3, 3)] or (seconds and steps == [(1, 3), (3, 3)])
    pictures = [preview for _, _, preview in shown]
    # The first and the last are always shown.
    assert pictures[0] and pictures[-1]
    assert all((p is None) is (seconds > 0) for p in pictures[1:-1])
    for kind, picture, _ in filter(None, pictures):
        assert kind == "JPEG" and picture.width == 320 and picture.height == 400
        assert picture.crop((0, 0, 320, 320)).getextrema() != ((0, 0), (0, 0), (0, 0))


def _bad_inputs():
    plain, image = given.conditioning, given.latent
    nan = image()
    nan["samples"] = nan["samples"] * float("nan")
    empty_mask = {**image(), "noise_mask": torch.zeros(1, 64, 64)}
    with_control = [[plain()[0][0], {**plain()[0][1], "control": object()}]]
    return {
        "no entry": ([], image(), "'target' is empty"),
        "two entries": (plain() + plain(1), image(), "'target' combines 2 conditionings"),
        "controlnet": (with_control, image(), "'target' carries 'control'.*disconnect"),
        "area": ([[plain()[0][0], {"area": (1, 1, 0, 0)}]], image(), "carries 'area'"),
        "range": ([[plain()[0][0], {"start_percent": 0.2}]], image(), "carries 'start_percent'"),
        "nan text": ([[plain()[0][0] * float("inf"), {}]], image(), "no finite text embedding"),
        "width": (plain(width=1024), image(), r"cannot take.*\(1, 77, 1024\).*text encoder"),
        "channels": (plain(), {"samples": torch.ones(1, 16, 8, 8)}, "16 latent channels.*4"),
        "empty": (plain(), {"samples": torch.zeros(1, 4, 8, 8)}, "empty latent.*VAE Encode"),
        "nan image": (plain(), nan, "'image' contains NaN"),
        "mask": (plain(), empty_mask, "the mask of 'image' is empty"),
    }


@pytest.mark.parametrize("case", list(_bad_inputs()))
def test_bad_input_is_refused_before_the_long_work(nodes, model, case, monkeypatch):
    target, latent, message = _bad_inputs()[case]
    before = given.weights(model)
    steps = []
    reporter = nodes.module.nodes.progress.Reporter
    monkeypatch.setattr(reporter, "__call__", lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=f"^Imagic Optimize Embedding: .*{message}"):
        nodes.optimize(model, target, latent, 1, RATE, 0)
    with pytest.raises(
        ValueError, match=f"^Imagic Fine-tune Model: .*{message}".replace("target", "optimized")
    ):
        nodes.finetune(model, target, latent, "lora", 1, 4e-2, 0)
    assert not steps
    given.assert_weights(model, before)


def test_interpolation_carries_everything_through(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    target[0][1]["guidance"] = 3.5
    ((tokens, options),) = nodes.interpolate(target, optimized, 0.25)[0]
    for found, name in ((tokens, 0), (options["pooled_output"], None)):
        pair = [c[0][0] if name == 0 else c[0][1]["pooled_output"] for c in (target, optimized)]
        torch.testing.assert_close(found, 0.25 * pair[0] + 0.75 * pair[1])
    assert options["guidance"] == 3.5


def test_projection_node_sets_identity_and_edit(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    project = nodes.nodes["ImagicProjectConditioning"]
    ((kept, options),) = project.execute(target, optimized, 1.0, 0.0).result[0]
    assert torch.equal(kept, optimized[0][0])
    assert torch.equal(options["pooled_output"], optimized[0][1]["pooled_output"])
    with pytest.raises(ValueError, match="Imagic Project Conditioning: .* do not match"):
        project.execute(given.conditioning(), given.conditioning(width=1024), 1.0, 1.0)


@pytest.fixture(scope="module")
def lora(nodes, model, learned):
    _, latent, optimized, _ = learned
    return nodes.finetune(model, optimized, latent, "lora", 4, 4e-2, 0)[1]


def test_fine_tuning_can_be_turned_down_part_by_part(nodes, model, learned, lora):
    _, latent, optimized, _ = learned
    strength = nodes.nodes["ImagicFinetuneStrength"]

    def loss(*strengths):
        (tuned,) = strength.execute(model, lora, *strengths).result
        return nodes.loss(tuned, optimized, latent, 4)

    plain, whole = nodes.loss(model, optimized, latent, 4), loss(1.0, 1.0, 1.0)
    assert loss(0.0, 0.0, 0.0) == pytest.approx(plain, rel=1e-6)
    assert whole < plain * 0.98
    (applied,) = (nodes.host.apply_lora(model, lora),)
    assert nodes.loss(applied, optimized, latent, 4) == pytest.approx(whole, rel=1e-5)
    parts = [loss(*(float(i == part) for i in range(3))) for part in range(3)]
    assert len({plain, whole, *parts}) == 5, "each part has an effect of its own"


def test_parts_of_a_unet_are_its_encoder_middle_and_decoder(nodes, model, lora):
    parts = nodes.host.lora_by_part(model, lora)
    tops = {part: {key.split(".")[1] for key in keys} for part, keys in parts.items()}
    assert tops == {
        "encoder": {"time_embed", "input_blocks"},
        "middle": {"middle_block"},
        "decoder": {"output_blocks", "out"},
    }
    assert sum(len(keys) for keys in parts.values()) == len(lora)


@pytest.mark.parametrize("wrong", [{}, {"diffusion_model.double_blocks.0.x.diff": torch.ones(1)}])
def test_a_lora_of_another_kind_of_model_is_refused(nodes, model, wrong):
    with pytest.raises(ValueError, match="Imagic Fine-tune Strength: 'lora' has .*connect"):
        nodes.nodes["ImagicFinetuneStrength"].execute(model, wrong, 1.0, 1.0, 1.0)


def test_the_recipes_are_to_the_letter(nodes, model, monkeypatch):
    asked = []
    core = nodes.module.nodes

    def stop(*args):
        asked.append(next(a for a in args if hasattr(a, "learning_rate")))
        raise _Stop

    monkeypatch.setattr(core.optimize_embedding, "optimize_embedding", stop)
    monkeypatch.setattr(core.finetune_model, "finetune_model", stop)
    text, latent = given.conditioning(), given.latent()
    with pytest.raises(_Stop):
        nodes.optimize(model, text, latent, 3, 0.5, 9, recipe="paper", batch_size=7)
    made = []
    real = nodes.host.new_changes
    monkeypatch.setattr(nodes.host, "new_changes", lambda *a: made.append(a[1]) or real(*a))
    with pytest.raises(_Stop):
        nodes.finetune(model, text, latent, "lora", 3, 0.5, 9, recipe="paper", batch_size=7)
    assert [(s.steps, s.learning_rate, s.batch_size, s.seed) for s in asked] == [
        (1000, 2e-3, 1, 9),
        (1500, 5e-7, 1, 9),
    ]
    assert made == ["full"]
    with pytest.raises(_Stop):
        nodes.optimize(model, text, latent, 3, 0.5, 9, recipe="fast", batch_size=7)
    with pytest.raises(_Stop):
        nodes.finetune(model, text, latent, "full", 3, 0.5, 9, recipe="fast", batch_size=7)
    fast = asked[2:]
    assert sum(s.steps * s.batch_size for s in fast) == 120 and {s.seed for s in fast} == {9}
    assert made == ["full", "lora"]


def test_interpolation_between_two_text_encoders_is_refused(nodes):
    with pytest.raises(ValueError, match=r"'target' and 'optimized' do not match.*768.*1024"):
        nodes.interpolate(given.conditioning(), given.conditioning(width=1024), 0.5)
