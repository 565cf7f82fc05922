"""Whole models of the families: a network's text encoders and autoencoder beside it.

They are of the host's own classes with random weights, made small by `kinds.small_constants`;
only the vocabularies and the widths that the networks ask for are left as they are. What they
encode means nothing, but another sentence or picture gives other numbers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from families.kinds import FAMILIES, Family, Sketch, random_weight, random_weights, small_constants

# Module and class of the host's, and the key by which the host knows a file of the encoder.
TEXT_ENCODERS = {
    "clip_l": ("comfy.sd1_clip", "SDClipModel", None),
    "clip_g": ("comfy.sdxl_clip", "SDXLClipG", "text_model.encoder.layers.30.mlp.fc1.weight"),
    "clip_h": (
        "comfy.text_encoders.sd2_clip", "SD2ClipHModel",
        "text_model.encoder.layers.22.mlp.fc1.weight",
    ),
    "t5xxl": (
        "comfy.text_encoders.sd3_clip", "T5XXLModel",
        "encoder.block.23.layer.1.DenseReluDense.wi_1.weight",
    ),
}  # fmt: skip

# Where a checkpoint of everything has its text encoders.
CHECKPOINT_PREFIXES = {
    "sd15": ("cond_stage_model.transformer.",),
    "sd15_inpaint": ("cond_stage_model.transformer.",),
    "sd2_v": ("cond_stage_model.model.transformer.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.transformer."),
    "x4_upscaler": ("cond_stage_model.model.transformer.",),
}


def text_encoder(name: str, seed: int = 0) -> Sketch:
    """Float16 weights of one of `TEXT_ENCODERS`, as its file has them."""
    module, cls, mark = TEXT_ENCODERS[name]
    encoder = getattr(importlib.import_module(module), cls)(device="meta", dtype=torch.float16)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: _random_rows(key, tensor, generator).half()
        for key, tensor in sorted(encoder.transformer.state_dict().items())
    }
    if mark is not None:
        # A layer that only a large encoder has; the host knows the file by it and by the first and
        # last number of its shape, which hold without any values between.
        weights[mark] = torch.zeros(10240, 0, 4096, dtype=torch.float16)
    return weights


def autoencoder(family: Family, seed: int = 0) -> Sketch:
    """Weights of a KL autoencoder with the latents of `family`."""
    import comfy.sd

    depth = {8: [1, 2, 4, 4], 4: [1, 2, 4]}[family.downscale]
    model = comfy.sd.AutoencoderKL(
        ddconfig={
            "double_z": True, "z_channels": family.latent_channels, "resolution": 256,
            "in_channels": 3, "out_ch": 3, "ch_mult": depth, "attn_resolutions": [], "dropout": 0.0,
        },
        embed_dim=family.latent_channels,
    )  # fmt: skip
    return random_weights(model, torch.Generator().manual_seed(seed))


def checkpoint(family: Family, seed: int = 0) -> Sketch:
    """Everything of a family in one, for `CheckpointLoaderSimple`; see `CHECKPOINT_PREFIXES`."""
    parts = {
        "model.diffusion_model.": family.state_dict(seed),
        "first_stage_model.": autoencoder(family, seed),
    }
    for name, prefix in zip(family.text_encoders, CHECKPOINT_PREFIXES[family.name], strict=True):
        parts[prefix] = text_encoder(name, seed)
    return {prefix + key: t for prefix, part in parts.items() for key, t in part.items()}


def write_models(folder: Path) -> Path:
    """Write a ComfyUI `models` folder with all families into `folder`, and return it.

    ========================================  ==================================================
    ``diffusion_models/{family}.safetensors``  every family's network
    ``text_encoders/{name}.safetensors``       each of `TEXT_ENCODERS`
    ``vae/{family}.safetensors``               autoencoders of those that have one
    ``checkpoints/{family}.safetensors``       all in one, where the host knows such files
    ========================================  ==================================================
    """
    from safetensors.torch import save_file

    def write(place: str, weights: Sketch) -> None:
        path = folder / f"{place}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)

    with small_constants(narrow=True):
        for name in TEXT_ENCODERS:
            write(f"text_encoders/{name}", text_encoder(name))
        for family in FAMILIES.values():
            write(f"diffusion_models/{family.name}", family.state_dict())
            if family.downscale > 1:
                write(f"vae/{family.name}", autoencoder(family))
            if family.name in CHECKPOINT_PREFIXES:
                write(f"checkpoints/{family.name}", checkpoint(family))
    return folder


def _random_rows(key: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    # A vocabulary of its full length takes seconds to draw; few of its words are ever asked for.
    rows = min(len(tensor), 4099)
    some = random_weight(key, tensor[:rows], generator)
    return some.repeat(-(-len(tensor) // rows), *[1] * (tensor.dim() - 1))[: len(tensor)]


def loader_nodes(family: Family) -> dict[str, dict[str, Any]]:
    """The host's nodes that load `family`: `model` (MODEL), `clip` (CLIP) and `vae` (VAE)."""
    files = [f"{name}.safetensors" for name in family.text_encoders]
    if len(files) == 1:
        clip = ("CLIPLoader", {"clip_name": files[0], "type": family.clip_type})
    else:
        names = {f"clip_name{i}": file for i, file in enumerate(files, start=1)}
        if len(files) == 2:
            clip = ("DualCLIPLoader", {**names, "type": family.clip_type})
        else:
            clip = ("TripleCLIPLoader", names)
    file = f"{family.name}.safetensors"
    vae = file if family.downscale > 1 else "pixel_space"
    return {
        "model": {
            "class_type": "UNETLoader", "inputs": {"unet_name": file, "weight_dtype": "default"},
        },
        "clip": {"class_type": clip[0], "inputs": clip[1]},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": vae}},
    }  # fmt: skip
