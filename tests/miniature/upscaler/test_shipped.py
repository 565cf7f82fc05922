"""The shipped upscaler: its size, its hash, and what it draws in the real host."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from miniature import asset, metrics
from miniature.edits import edits
from miniature.upscaler import checkpoint


def test_the_asset_is_small_and_builds_to_its_hash(x4_checkpoint):
    assert sum(p.stat().st_size for p in checkpoint.FOLDER.iterdir()) <= 6_000_000
    about = json.loads((checkpoint.FOLDER / "asset.json").read_text())
    assert asset.digest(x4_checkpoint) == about["sha256"]


@pytest.fixture(scope="module")
def drawn(pack, x4_checkpoint):
    """Held-out pictures, a quarter as wide, and both as the host draws them large again."""
    import folder_paths
    from machine.imagic import Pack

    call = Pack(pack).call
    folder_paths.add_model_folder_path("checkpoints", str(x4_checkpoint.parent))
    model, clip, vae = call("CheckpointLoaderSimple", x4_checkpoint.name)
    pictures = np.stack([edit.truth for edit in edits(2)])
    pixels = torch.from_numpy(pictures).float() / 255
    small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 4).movedim(1, -1)
    (empty,) = call("CLIPTextEncode", clip, "")
    positive, negative, latent = call("SD_4XUpscale_Conditioning", small, empty, empty, 4.0, 0.0)
    settings = (5, 8, 1.0, "euler", "normal")
    (sampled,) = call("KSampler", model, *settings, positive, negative, latent, 1.0)
    (large,) = call("VAEDecode", vae, sampled)
    eight = [(p * 255).round().byte().numpy() for p in (small, large.clamp(0, 1))]
    return [pictures, *eight]


def test_it_draws_held_out_pictures_nearer_to_the_truth_than_bicubic(drawn):
    for truth, small, large in zip(*drawn, strict=True):
        bicubic = Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC)
        assert metrics.psnr(large, truth) > metrics.psnr(np.asarray(bicubic), truth) + 2
