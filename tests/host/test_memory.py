"""What a training step holds, in bytes, so that the next change cannot lose it unseen."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from core.alive import Alive

from host import given

HELD = {"full": (0.5, 0.65), "attention": (0.5, 0.9), "lora": (1.0, 3.5)}
"""Method -> between what lies that which is made and held at once, in the size of what is trained.

Of `full` and `attention` that is the momentum in bfloat16, and next to it what one layer needs; of
`lora` the momentum, the gradient and its orthogonal turn.
"""


def steps(nodes, model, method, size=1):
    """What two steps made, and how many bytes are trained; ``size`` is that of `Alive`."""
    settings = replace(nodes.core.finetune.METHODS[method], steps=2, batch_size=1)
    with nodes.session(model, given.conditioning(), given.latent(), method) as session:
        with Alive(size) as alive:
            nodes.core.finetune.finetune_model(
                session.denoiser, session.photographs, session.embedding, session.changes,
                settings, lambda _: None,
            )  # fmt: skip
        trained = [p for change in session.changes.values() for p in change.parameters()]
    return alive, sum(p.nbytes for p in trained)


@pytest.fixture(scope="module")
def wide(comfy, tiny_checkpoint):
    """A MODEL beside whose weights all else is small."""
    return given.load(tiny_checkpoint)


@pytest.mark.parametrize("method", HELD)
def test_no_two_layers_gradients_are_held(nodes, wide, method):
    alive, trained = steps(nodes, wide, method)
    least, most = HELD[method]
    assert least * trained < alive.peak < most * trained


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_changed_weights_of_any_format_are_made_one_at_a_time(nodes, tiny_checkpoint, stored):
    alive, trained = steps(nodes, given.load(tiny_checkpoint, dtype=stored), "full")
    assert 0.5 * trained < alive.peak < trained


def test_a_low_rank_change_makes_nothing_as_large_as_a_weight(nodes, model):
    """Not forth, not back, not in the optimiser's step."""
    layers = nodes.host.weights.layers(model).values()
    largest = max(layer.weight.nbytes for layer in layers)
    assert not steps(nodes, model, "lora", largest)[0].large
    assert steps(nodes, model, "full", largest)[0].large


# ---- what is free decides ---------------------------------------------------------------------


def edit(nodes, model, method="lora", **how):
    """Both trainings, two draws a step: what was learned, and its losses."""
    text, image = given.conditioning(), given.latent()
    optimized, a = nodes.optimize(model, text, image, 2, 0.01, 0, batch_size=2, **how)
    _, lora, b = nodes.finetune(
        model, optimized, image, method, 2, 0.01, 0, batch_size=2, rank=2, **how
    )
    return optimized[0][0], lora, a["loss"], b["loss"]


@pytest.fixture
def said(nodes, monkeypatch):
    """Each line that a training shows on its node before its first step."""
    lines = []
    monkeypatch.setattr(nodes.module.nodes.train, "say", lines.append)
    return lines


@pytest.fixture
def device(nodes, monkeypatch):
    """Stands for a GPU, which tells what a draw takes: some bytes, fewer with recomputed blocks."""
    import comfy.model_management

    takes = {"kept": 8 * 2**30, "recomputed": 2**30, "free": 100 * 2**30}
    trainable, is_recomputed = nodes.host.trainable, []

    def noted(*args, recompute=False, **how):
        is_recomputed[:] = [recompute]
        return trainable(*args, recompute=recompute, **how)

    monkeypatch.setattr(nodes.host, "trainable", noted)
    inside = importlib.import_module(trainable.__module__)
    monkeypatch.setattr(
        inside,
        "peak_of",
        lambda _: lambda: takes["recomputed" if is_recomputed[0] else "kept"],
    )

    def free(_device=None, torch_free_too=False):
        return (takes["free"], 0) if torch_free_too else takes["free"]

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    return takes


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (17, "2 at a time, 16.0 GB beside the weights"),
        (15, "2 at a time, blocks recomputed, 2.0 GB"),
        (1.5, "1 at a time, blocks recomputed, 1.0 GB"),
        (0.5, "1 at a time, blocks recomputed, idle weights in main memory; memory"),
    ],
)
def test_what_is_free_decides_before_the_first_step(nodes, model, device, said, free, chosen):
    plain = edit(nodes, model)
    assert sum("2 at a time, 16.0 GB" in line for line in said) == 2
    said.clear()
    device["free"] = int(free * 2**30)
    found = edit(nodes, model)
    told = [line for line in said if "at a time" in line]
    assert len(told) == 2 and all(chosen in line for line in told), said
    assert given.apart([found[0]], [plain[0]]) < 1e-4
    assert found[2] == pytest.approx(plain[2], rel=1e-5)
    assert found[3] == pytest.approx(plain[3], rel=1e-4)


def test_the_user_has_the_last_word(nodes, model, device, said):
    device["free"] = 2**30
    edit(nodes, model, save_memory="off")
    assert all("2 at a time; memory" in line for line in said if "at a time" in line)
    said.clear()
    device["free"] = 100 * 2**30
    edit(nodes, model, save_memory="on")
    assert all("2 at a time, blocks recomputed, 2.0 GB" in line for line in said[1::2])


def test_ways_go_on_until_the_smallest(nodes, model, monkeypatch, said):
    tried = []

    def never(*_args, **_how):
        tried.append(1)
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(nodes.core.fit, "reconstruction_loss", never)
    with pytest.raises(RuntimeError, match="Optimize Embedding: not enough memory"):
        nodes.optimize(model, given.conditioning(), given.latent(), 1, 0.01, 0, batch_size=2)
    assert len(tried) == 4
    assert [line.split("back, ")[1].split(";")[0] for line in said[1::2]] == [
        "2 at a time",
        "2 at a time, blocks recomputed",
        "1 at a time, blocks recomputed",
        "1 at a time, blocks recomputed, idle weights in main memory",
    ]


def test_weights_that_a_device_cannot_hold_lie_elsewhere_in_part(nodes, model, monkeypatch, said):
    """Only a GPU has another memory beside it, so the answer is put in its place."""
    inside, tried = nodes.module.nodes.train, []

    def at_least(_model, _changes, way):
        tried.append(way)
        if not way.in_main_memory:
            raise inside.OutOfMemoryError("the weights take more")
        return 2**30

    monkeypatch.setattr(inside, "at_least", at_least)
    edit(nodes, model)
    assert len(tried) == 8 and sum("idle weights in main memory" in line for line in said) == 2
    with pytest.raises(RuntimeError, match="Optimize Embedding: the weights take more"):
        edit(nodes, model, save_memory="off")


@pytest.mark.parametrize("method", ["lora", "attention"])
def test_idle_weights_lie_in_main_memory(nodes, narrow_checkpoint, device, monkeypatch, method):
    """The host moves each for its pass alone; here, without a GPU, both memories are one."""
    import comfy.model_management as management

    model = given.load(narrow_checkpoint)
    before, plain = given.weights(model), edit(nodes, model, method)
    monkeypatch.setattr(management, "is_device_cpu", lambda _: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    management.unload_all_models()
    device["free"] = 2**20
    seen, predict = [], nodes.host.HostDenoiser.predict

    def looked(self, *args):
        layers = nodes.host.weights.layers(model).values()
        seen.append(sum(bool(getattr(layer, "comfy_cast_weights", False)) for layer in layers))
        return predict(self, *args)

    monkeypatch.setattr(nodes.host.HostDenoiser, "predict", looked)
    found = edit(nodes, model, method)
    assert min(seen[-2:]) > 100, "all lay on the device"
    assert given.apart([found[0]], [plain[0]]) < 1e-4
    assert found[3] == pytest.approx(plain[3], rel=1e-4)
    given.assert_weights(model, before)
