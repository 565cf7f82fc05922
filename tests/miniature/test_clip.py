"""The host computes from the expanded CLIP what training computed on its own channels."""

import numpy as np
import pytest
import torch

from miniature import clip, clip_layout, world
from miniature.train import example

TEXTS = ["a photo of a sitting red dog on the grass", "a striped animal over a green screen"]


@pytest.fixture(scope="module")
def own():
    """A small CLIP of random weights, with which nothing is near zero."""
    torch.manual_seed(3)
    model = clip.Clip()
    for p in model.parameters():
        with torch.no_grad():
            p.add_(0.1 * torch.randn_like(p))
    return model.half().float().eval()


@pytest.fixture(scope="module")
def tensors(own):
    return {name: p.numpy() for name, p in own.state_dict().items()}


@pytest.fixture(scope="module")
def full(comfy, tensors, tmp_path_factory):
    """The host's CLIP_VISION and CLIP of the file."""
    import comfy.clip_vision
    import comfy.sd

    path = clip_layout.build(tmp_path_factory.mktemp("clip") / "clip.safetensors", tensors)
    with torch.inference_mode():
        vision = comfy.clip_vision.load(str(path))
        kind = comfy.sd.CLIPType.STABLE_DIFFUSION
        return vision, comfy.sd.load_clip([str(path)], clip_type=kind)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.from_numpy(np.stack([world.render(*example("tuning", i)) for i in range(2)])) / 255


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    return a @ b.T


def test_both_towers_meet_in_one_space_as_trained(own, full, pictures, pack):
    with torch.inference_mode():
        ours = own.see(pictures.movedim(-1, 1)) @ own.read(TEXTS).T
        seen = full[0].encode_image(pictures)["image_embeds"]
        said = pack.nodes.comfy_host.sentences_of_pair(*full, TEXTS)
    assert ours.std() > 0.02
    assert (cosines(seen, said) - ours).abs().max() < 5e-3


def test_without_the_copies_it_is_the_same_function(full, tensors, pictures, pack):
    narrow = clip_layout.in_host(tensors)
    with torch.inference_mode():
        wide_out, out = (v.encode_image(pictures) for v in (full[0], narrow[0]))
        said, wide_said = (
            pack.nodes.comfy_host.sentences_of_pair(*pair, TEXTS) for pair in (narrow, full)
        )
    assert cosines(wide_out["image_embeds"], out["image_embeds"]).diagonal().min() > 0.9999
    tokens = wide_out["penultimate_hidden_states"].unflatten(-1, (-1, clip.WIDTH))
    assert (tokens - out["penultimate_hidden_states"][:, :, None]).abs().max() < 2e-2
    assert torch.equal(said, wide_said)


def test_a_sentence_says_what_fits():
    shown = clip.truth(*example("train", 0))
    assert clip.fits(shown._replace(colour=None, place=None), shown)
    assert not clip.fits(shown._replace(pose="other"), shown)
    assert clip.sentence(clip.Said("sitting", "screen", "hat", "red", True)) == (
        "a photo of a sitting red striped dog wearing a hat over a green screen"
    )
