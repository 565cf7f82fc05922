"""Expand the upscaler's asset into an ordinary checkpoint of Stable Diffusion's x4 upscaler.

    python tests/miniature/upscaler/checkpoint.py --out upscaler.safetensors

Needs numpy and safetensors only, and 0.9 GB: the host takes the text encoder in its full size
alone. The result is checked against the hash in asset/asset.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from miniature import build, captions  # noqa: E402
from miniature.upscaler import layout  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "asset"
TEXT = "cond_stage_model.model.transformer."


def of_asset(about: dict, network: build.Tensors, autoencoder: build.Tensors) -> build.Tensors:
    """The checkpoint that an asset of the upscaler expands to, in half precision."""
    return build.joined(
        {
            "model.diffusion_model.": layout.network_tensors(network),
            f"{TEXT}text_model.": captions.clip_tensors(captions.OPEN_CLIP),
            TEXT: {"text_projection.weight": np.eye(layout.TEXT, dtype=np.float16)},
            "first_stage_model.": layout.autoencoder_tensors(autoencoder, about["latent_std"]),
        }
    )


def build_x4(out: Path, folder: Path = FOLDER) -> Path:
    """Write the checkpoint to `out` and return it, as `build.build` does."""
    return build.build(out, folder, of_asset)


def seal(folder: Path = FOLDER) -> str:
    """Write the hash of what the asset now expands to into asset.json, and return it."""
    return build.seal(folder, of_asset)


if __name__ == "__main__":
    build.command_line(__doc__, build_x4)
