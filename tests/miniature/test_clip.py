"""The host computes from the expanded CLIP what training computed on its own channels."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from miniature import clip, world
from miniature.train import example

TEXTS = ["a photo of a sitting red dog on the grass", "a spotted animal over a green screen"]


@pytest.fixture(scope="module")
def both(comfy, tmp_path_factory):
    """A random small CLIP, and the host's CLIP_VISION and CLIP of its file."""
    import comfy.clip_vision
    import comfy.sd

    torch.manual_seed(3)
    own = clip.Clip()
    for p in own.parameters():
        with torch.no_grad():
            p.add_(0.05 * torch.randn_like(p))
    own.half().float()
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    full = clip.full_tensors({n: p.numpy() for n, p in own.state_dict().items()})
    save_file(full, path)
    vision = comfy.clip_vision.load(str(path))
    text = comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
    return own.eval(), vision, text, full


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.from_numpy(np.stack([world.render(*example("tuning", i)) for i in range(2)])) / 255


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    return a @ b.T


def test_both_towers_meet_in_one_space_as_trained(both, pictures, pack):
    own, vision, text, _ = both
    with torch.inference_mode():
        ours = own.see(pictures.movedim(-1, 1)) @ own.read(TEXTS).T
        seen = vision.encode_image(pictures)["image_embeds"]
        said = torch.cat([pack.nodes.comfy_host.text_features(text, t) for t in TEXTS])
    assert ours.std() > 0.01
    assert (cosine(seen, said) - ours).abs().max() < 5e-3


def test_the_narrow_tower_in_the_hosts_class_is_the_full_one(both, pictures, tmp_path):
    import comfy.clip_vision

    own, vision, _, full = both
    state = {n: p.numpy() for n, p in own.state_dict().items()}
    (tmp_path / "narrow.json").write_text(json.dumps(clip.narrow_config()))
    narrow = comfy.clip_vision.ClipVisionModel(str(tmp_path / "narrow.json"))
    missing, unexpected = narrow.load_sd(clip.narrow_tensors(full, state))
    assert not missing and not unexpected
    with torch.inference_mode():
        a, b = (v.encode_image(pictures) for v in (vision, narrow))
    assert (a["image_embeds"] - b["image_embeds"]).abs().max() < 5e-3 * b["image_embeds"].abs().max()
    tokens = a["penultimate_hidden_states"].unflatten(-1, (-1, clip.WIDTH))
    assert (tokens - b["penultimate_hidden_states"][:, :, None]).abs().max() < 2e-2


def test_captions_say_what_fits():
    who, what = example("train", 0)
    shown = clip.truth(who, what)
    assert clip.fits(shown._replace(colour=None, place=None), shown)
    assert not clip.fits(shown._replace(pose="other"), shown)
    assert clip.sentence(clip.Said("sitting", "screen", "hat", "red", True)) == (
        "a photo of a sitting red spotted dog wearing a hat over a green screen"
    )
