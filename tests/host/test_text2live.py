"""Imagic Text2LIVE, with a CLIP that knows the miniature's world."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from miniature import clip, clip_layout, metrics, reader, world

COAT = {"red": "blue", "yellow": "purple", "green": "red", "turquoise": "red", "blue": "yellow"}


@pytest.fixture(scope="module")
def eyes(comfy: Any) -> tuple[Any, Any]:
    """CLIP_VISION and CLIP."""
    return clip_layout.in_host()


@pytest.fixture(scope="module")
def who() -> world.Identity:
    return world.identity("heldout", 4)


@pytest.fixture(scope="module")
def dog(who: world.Identity) -> torch.Tensor:
    """Where it is, [128, 128]."""
    shown = world.render(who, world.Attributes("standing", "grass", "none"))
    return torch.from_numpy((shown != world.landscape(who, "grass")).any(-1))


@pytest.fixture(scope="module")
def photograph(who: world.Identity) -> torch.Tensor:
    shown = world.render(who, world.Attributes("standing", "grass", "none"))
    return torch.from_numpy(shown.astype(np.float32) / 255)[None]


def texts(now: str, then: str, layer: str) -> dict[str, str]:
    says = "a photo of a {} on the grass"
    return {
        "text": says.format(then),
        "source_text": says.format(now),
        "layer_text": f"a {layer}",
        "region_text": f"a photo of a {now}",
    }


POSE = texts("standing dog", "sitting dog", "sitting dog")


def painted(nodes: Any, photograph: torch.Tensor, eyes: Any, said: dict[str, str], **how: Any):
    how = {"steps": 2, "views": 1, "seed": 3} | how
    return nodes.call("ImagicText2Live", photograph, *eyes, **said, **how)


def pixels(image: torch.Tensor) -> np.ndarray:
    return (image[0] * 255).round().byte().numpy()


def test_another_colour_comes_and_the_rest_stays(nodes, eyes, photograph, who, dog):
    colour = clip.colour_of(who)
    said = texts(f"{colour} dog", f"{COAT[colour]} dog", f"{COAT[colour]} dog")
    image, layer, opacity, loss = painted(nodes, photograph, eyes, said, steps=80, views=2)
    assert opacity[0][dog].mean() > 2 * opacity[0][~dog].mean()
    assert opacity[0][~dog].mean() < 0.25
    other = dataclasses.replace(who, hue=clip.COLOURS.index(COAT[colour]) / len(clip.COLOURS))
    truth = world.render(other, world.Attributes("standing", "grass", "none"))
    assert metrics.psnr(pixels(image), truth) > metrics.psnr(pixels(photograph), truth) + 1
    (found,) = reader.read(reader.load(), pixels(image)[None])
    assert (found.place, found.accessory) == ("grass", "none")
    assert np.mean(loss["loss"][-10:]) < 0.7 * np.mean(loss["loss"][:10])
    over = opacity[..., None] * layer + (1 - opacity[..., None]) * photograph
    assert (image - over).abs().max() < 1e-5


def test_clip_sees_where_the_dog_is_as_chefer_et_al_find_it(nodes, eyes, photograph, who, dog):
    own, sentence = clip_layout.load(), f"a photo of a {clip.colour_of(who)} dog"
    picture = photograph.movedim(-1, 1)
    with torch.inference_mode(), nodes.host.seeing(eyes[0]) as ours:
        (said,) = nodes.host.sentences_of_pair(*eyes, [sentence]).clone()
        found = ours.relevance(picture, said)
        again = ours.see(picture)[0]
    assert found.shape == (1, 1, 128, 128) and (found.min(), found.max()) == (0, 1)
    assert found[0, 0][dog].mean() > 10 * found[0, 0][~dog].mean()
    torch.testing.assert_close(found, relevance(own, picture, sentence), atol=2e-2, rtol=0)
    assert not any(module._forward_pre_hooks for module in eyes[0].model.modules())
    hosts = eyes[0].encode_image(photograph)["image_embeds"]
    torch.testing.assert_close(again.detach(), hosts, atol=2e-2, rtol=2e-2)


def relevance(own: clip.Clip, picture: torch.Tensor, sentence: str) -> torch.Tensor:
    """The same from the small CLIP by itself, with an attention written out."""
    tower, maps = own.vision_model, []
    x = tower.pre_layrnorm(tower.embeddings(clip.prepared(picture), None))
    for layer in tower.encoder.layers:
        h = layer.layer_norm1(x)
        q, k, v = (
            layer.self_attn[name](h).unflatten(-1, (clip.HEADS, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        maps.append((torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1))
        x = x + layer.self_attn["out_proj"]((maps[-1] @ v).transpose(1, 2).flatten(2))
        h = layer.mlp["fc1"](layer.layer_norm2(x))
        x = x + layer.mlp["fc2"](h * torch.sigmoid(1.702 * h))
    seen = own.visual_projection(tower.post_layernorm(x[:, 0]))
    cosine = torch.cosine_similarity(seen, own.read([sentence])).sum()
    (slope,) = torch.autograd.grad(cosine, maps[-1])
    reached = torch.eye(257) + (maps[-1] * slope)[0].detach().clamp(min=0).mean(0)
    found = reached[0, 1:].view(1, 1, 16, 16)
    found = torch.nn.functional.interpolate(found, (128, 128), mode="bilinear")
    return (found - found.min()) / (found.max() - found.min())


@pytest.mark.parametrize("region", ["a dog", " "])
def test_clip_is_told_each_sentence_by_its_place(nodes, eyes, photograph, region, monkeypatch):
    told: list[Any] = []

    def noting(_photograph: Any, _eyes: Any, of: Any, *_: Any) -> Any:
        told.append(of)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(nodes.module.nodes.text2live, "paint", noting)
    said = {"text": "a red dog", "source_text": "a blue dog", "layer_text": " a dog "}
    with pytest.raises(RuntimeError, match="not enough memory"):
        painted(nodes, photograph, eyes, {**said, "region_text": region})
    sentences = ["a red dog", "a dog over a green screen", "a blue dog", "a dog"]
    with torch.inference_mode():
        expected = nodes.host.sentences_of_pair(*eyes, sentences)
    found = [one for one in told[0] if one is not None]
    assert torch.equal(torch.stack(found), expected[: 4 if region.strip() else 3])


def test_kernels_have_a_backward_while_it_is_painted(nodes, eyes, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    with nodes.host.seeing(eyes[0]):
        assert comfy.model_management.in_training
    assert not comfy.model_management.in_training


def test_a_pose_does_not_come(nodes, eyes, photograph, who):
    image = painted(nodes, photograph, eyes, POSE, steps=80, views=2)[0]
    (found,) = reader.read(reader.load(), pixels(image)[None])
    assert found.pose != "sitting"
    truth = world.render(who, world.Attributes("sitting", "grass", "none"))
    before, after = (metrics.psnr(pixels(p), truth) for p in (photograph, image))
    assert after < before + 1


def test_the_same_seed_gives_the_same_and_another_another(nodes, eyes, photograph):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (
        painted(nodes, photograph, eyes, POSE, seed=seed)[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_encoders_stay_as_they_are(nodes, eyes, photograph):
    def state() -> dict[str, Any]:
        return {
            name: (p.requires_grad, p.is_inference(), p._version if not p.is_inference() else 0)
            for name, p in eyes[0].model.named_parameters()
        }

    before, seen = state(), eyes[0].encode_image(photograph)["image_embeds"]
    painted(nodes, photograph, eyes, POSE)
    assert state() == before
    assert torch.equal(eyes[0].encode_image(photograph)["image_embeds"], seen)


def test_clip_sees_what_the_host_sees(nodes, eyes, photograph):
    with torch.inference_mode():
        hosts = eyes[0].encode_image(photograph)
        with nodes.host.seeing(eyes[0]) as ours:
            seen, tokens = ours.see(photograph.movedim(-1, 1).clone().requires_grad_())
            assert seen.requires_grad and tokens.requires_grad
    torch.testing.assert_close(seen.detach(), hosts["image_embeds"], atol=2e-2, rtol=2e-2)
    theirs = hosts["penultimate_hidden_states"]
    torch.testing.assert_close(tokens.detach(), theirs, atol=5e-2, rtol=5e-2)


def test_weights_that_may_vanish_are_seen_through_by_a_copy(nodes, eyes, photograph, monkeypatch):
    if not hasattr(eyes[0].patcher, "is_dynamic"):
        pytest.skip("this host keeps all weights where they are")
    # On the CPU the host itself never has such weights.
    monkeypatch.setattr(eyes[0].patcher, "is_dynamic", lambda: True)
    picture = photograph.movedim(-1, 1)
    with torch.inference_mode(), nodes.host.seeing(eyes[0]) as ours:
        assert ours.model is not eyes[0].model
        seen, _ = ours.see(picture.clone().requires_grad_())
        assert seen.requires_grad
    monkeypatch.undo()
    with torch.inference_mode(), nodes.host.seeing(eyes[0]) as ours:
        assert ours.model is eyes[0].model
        torch.testing.assert_close(ours.see(picture)[0], seen)


def test_the_gradient_is_the_slope_although_the_host_adds_in_place(nodes, eyes, photograph):
    with torch.inference_mode(), nodes.host.seeing(eyes[0]) as ours:
        x = photograph.movedim(-1, 1).clone() * 0.8 + 0.1
        ahead = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

        def value(at: torch.Tensor) -> torch.Tensor:
            return ours.see(at)[0].square().sum()

        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        slope = (value(x + 1e-3 * ahead) - value(x - 1e-3 * ahead)).item() / 2e-3
    assert (gradient * ahead).sum().item() == pytest.approx(slope, rel=0.02)


def test_progress_shows_every_step_and_a_picture(nodes, eyes, photograph, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: shown.append(args))
    painted(nodes, photograph, eyes, POSE, steps=3)
    assert [(value, total) for value, total, _ in shown] == [(1, 3), (2, 3), (3, 3)]
    _, picture, _ = shown[-1][2]
    assert picture.width == 320 and picture.crop((0, 0, 320, 300)).getcolors(300) is None


def test_it_stops_at_the_step_at_which_the_user_cancels(nodes, eyes, photograph, monkeypatch):
    import comfy.model_management

    reporter, steps = nodes.module.nodes.progress.Reporter, []
    report = reporter.__call__

    def cancelling(self: Any, progress: Any) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            comfy.model_management.interrupt_current_processing()
        report(self, progress)

    monkeypatch.setattr(reporter, "__call__", cancelling)
    with pytest.raises(BaseException) as raised:
        painted(nodes, photograph, eyes, POSE, steps=9)
    assert raised.typename == "InterruptProcessingException" and steps == [1, 2]


def test_too_little_memory_says_what_to_make_smaller(nodes, eyes, photograph, monkeypatch):
    def too_little(*_: Any) -> None:
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(nodes.module.nodes.text2live, "paint", too_little)
    with pytest.raises(RuntimeError, match=r"Text2LIVE.*128 x 128.*Scale Image to Total Pixels"):
        painted(nodes, photograph, eyes, POSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(2, 64, 64, 3)}, "'image' holds 2 pictures"),
        ({"image": torch.rand(1, 64, 12, 3)}, "'image' is 12 x 64; connect .* at least 16 x 16"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "'image' has NaN or infinity"),
        ({"text": " "}, "'text' is empty"),
        ({"layer_text": ""}, "'layer_text' is empty"),
        ({"source_text": POSE["text"] + " "}, "'text' and 'source_text' are the same"),
        ({"steps": 0}, "'steps' is 0"),
    ],
)
def test_what_cannot_be_used_is_refused(nodes, eyes, photograph, change, message):
    inputs = {"image": photograph, "steps": 1, "views": 1, **POSE, **change}
    with pytest.raises(ValueError, match=f"^Imagic Text2LIVE.*: {message}"):
        nodes.call("ImagicText2Live", clip_vision=eyes[0], clip=eyes[1], **inputs)


def test_grey_small_and_wide_pictures_are_painted(nodes, eyes):
    for shape in ((1, 16, 40, 3), (1, 33, 70, 1), (1, 64, 48, 4)):
        image, _, opacity, _ = painted(nodes, torch.rand(shape), eyes, POSE)
        assert image.shape == (1, *shape[1:3], 3) and opacity.shape == shape[:3]
