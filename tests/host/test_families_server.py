"""Every model family through the real server: text encoder, stages A, B and C, KSampler, decoder.

Whole models with random weights, loaded by the host's own nodes; the prompts go over HTTP, and the
losses, latents and pictures come back that way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import kinds
from families.whole import CHECKPOINT_PREFIXES, loader_nodes
from machine.host_process import Server
from PIL import Image
from safetensors.torch import load
from talk.api import Prompt, node
from talk.client import Client, Result

RATES = {"full": 2e-3, "lora": 1e-2}


def photograph(folder: Path, family: kinds.Family) -> Path:
    """A picture of the family's size, half of it transparent: what an inpainting model repaints."""
    rows, columns = (n * family.downscale for n in family.size)
    red = Image.linear_gradient("L").resize((columns, rows))
    blue = Image.radial_gradient("L").resize((columns, rows))
    seen = Image.new("L", (columns, rows), 255)
    seen.paste(0, (0, 0, columns // 2, rows))
    path = folder / f"{family.name}.png"
    Image.merge("RGBA", (red, red.rotate(180), blue, seen)).save(path)
    return path


def inputs_of(family: kinds.Family, picture: str) -> Prompt:
    """Nodes up to the model, the sentences (`target`, `negative`) and the photograph (`image`).

    A value `["name", n]` names a node; so does `SOCKETS`, which says where each of these is.
    """
    prompt: Prompt = {
        **loader_nodes(family),
        "photo": node("LoadImage", image=picture),
        "target": node("CLIPTextEncode", clip=["clip", 0], text="a photo of a sitting dog"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "image": node("VAEEncode", pixels=["photo", 0], vae=["vae", 0]),
    }
    text = {"positive": ["target", 0], "negative": ["negative", 0]}
    if family.concat == "inpaint":
        prompt["both"] = node(
            "InpaintModelConditioning", **text, vae=["vae", 0], pixels=["photo", 0],
            mask=["photo", 1], noise_mask=False,
        )  # fmt: skip
    elif family.concat == "upscale":
        rows, columns = family.size
        prompt["low"] = node(
            "ImageScale", image=["photo", 0], upscale_method="area", width=columns, height=rows,
            crop="disabled",
        )  # fmt: skip
        prompt["both"] = node(
            "SD_4XUpscale_Conditioning", **text, images=["low", 0], scale_ratio=4.0,
            noise_augmentation=0.1,
        )  # fmt: skip
    elif family.scalars == ("guidance",):
        prompt["both"] = node("FluxGuidance", conditioning=["target", 0], guidance=3.5)
    return prompt


def sentences(prompt: Prompt) -> tuple[list[Any], list[Any]]:
    """Sockets of the target's and the negative's CONDITIONING."""
    if "both" not in prompt:
        return ["target", 0], ["negative", 0]
    two = "negative" in prompt["both"]["inputs"]
    return ["both", 0], ["both", 1] if two else ["negative", 0]


def sample(prompt: Prompt, name: str, model: list[Any], positive: list[Any]) -> None:
    """Add a KSampler on the photograph's latent; its latent and its picture are saved."""
    _, negative = sentences(prompt)
    prompt[name] = {
        "class_type": "KSampler",
        "inputs": {
            "model": model, "positive": positive, "negative": negative,
            "latent_image": ["image", 0], "seed": 5, "steps": 2, "cfg": 2.0,
            "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        },
    }  # fmt: skip
    prompt[f"{name} latent"] = {
        "class_type": "SaveLatent", "inputs": {"samples": [name, 0], "filename_prefix": name},
    }  # fmt: skip
    prompt[f"{name} decoded"] = {
        "class_type": "VAEDecode", "inputs": {"samples": [name, 0], "vae": ["vae", 0]},
    }  # fmt: skip
    prompt[f"{name} picture"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [f"{name} decoded", 0], "filename_prefix": name},
    }


def measure(prompt: Prompt, name: str, model: list[Any], embedding: list[Any]) -> None:
    """Add the loss on noise that is the same for all: stage A at rate 0 learns nothing."""
    prompt[name] = optimize(model, embedding, steps=1, learning_rate=0.0, seed=1234)
    prompt[f"{name} text"] = {"class_type": "PreviewAny", "inputs": {"source": [name, 1]}}


def optimize(model: list[Any], target: list[Any], **inputs: Any) -> dict[str, Any]:
    wired = {"model": model, "target": target, "image": ["image", 0]}
    return {"class_type": "ImagicOptimizeEmbedding", "inputs": wired | inputs}


def loss(result: Result, name: str) -> float:
    (text,) = result.outputs[f"{name} text"]["text"]
    losses = json.loads(text)["loss"]
    return sum(losses) / len(losses)


def latent(client: Client, result: Result, name: str) -> torch.Tensor:
    (saved,) = result.outputs[f"{name} latent"]["latents"]
    return load(client.picture(saved))["latent_tensor"]


def pixels(client: Client, result: Result, name: str) -> bytes:
    (picture,) = client.images(result, f"{name} picture")
    return picture.tobytes()


@pytest.mark.parametrize("name", kinds.FAMILIES)
def test_the_three_stages_and_the_hosts_sampler(
    families_server: Server, families_client: Client, tmp_path: Path, name: str
) -> None:
    family, client = kinds.FAMILIES[name], families_client
    start = inputs_of(family, client.upload(photograph(tmp_path, family)))
    target, _ = sentences(start)

    untouched = dict(start)
    sample(untouched, "before", ["model", 0], target)
    before = client.run(untouched)

    edit = dict(start)
    edit["a"] = optimize(["model", 0], target, steps=6, learning_rate=2e-2, seed=0, batch_size=2)
    edit["c"] = {
        "class_type": "ImagicInterpolateConditioning",
        "inputs": {"target": target, "optimized": ["a", 0], "eta": 0.7},
    }
    measure(edit, "at the start", ["model", 0], target)
    measure(edit, "after a", ["model", 0], ["a", 0])
    for method, rate in RATES.items():
        edit[method] = {
            "class_type": "ImagicFinetuneModel",
            "inputs": {
                "model": ["model", 0], "optimized": ["a", 0], "image": ["image", 0],
                "method": method, "steps": 6, "learning_rate": rate, "seed": 0,
                "batch_size": 2,
            },
        }  # fmt: skip
        measure(edit, f"after {method}", [method, 0], ["a", 0])
        sample(edit, f"edit {method}", [method, 0], ["c", 0])
    sample(edit, "edit untouched", ["model", 0], ["c", 0])
    edited = client.run(edit)

    assert loss(edited, "after a") < loss(edited, "at the start")
    plain = latent(client, edited, "edit untouched")
    for method in RATES:
        assert loss(edited, f"after {method}") < loss(edited, "after a")
        found = latent(client, edited, f"edit {method}")
        assert found.shape == (1, family.latent_channels, *family.size)
        assert torch.isfinite(found).all() and not torch.equal(found, plain)
        assert pixels(client, edited, f"edit {method}") != pixels(client, edited, "edit untouched")

    again = client.run(untouched)
    # The loader's MODEL is the one that training had, and it is sampled, not remembered.
    assert "model" in again.cached and "before" in again.executed
    assert torch.equal(latent(client, before, "before"), latent(client, again, "before"))


@pytest.mark.parametrize("name", CHECKPOINT_PREFIXES)
def test_a_checkpoint_of_everything_encodes_as_its_parts_do(
    families_client: Client, tmp_path: Path, name: str
) -> None:
    family, client = kinds.FAMILIES[name], families_client
    prompt = inputs_of(family, client.upload(photograph(tmp_path, family)))
    sample(prompt, "whole", ["model", 0], sentences(prompt)[0])
    parts = client.run(prompt)
    checkpoint = {
        "class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": f"{name}.safetensors"},
    }  # fmt: skip
    sockets = {"model": ["all", 0], "clip": ["all", 1], "vae": ["all", 2]}
    whole = {"all": checkpoint} | {
        key: {
            **node,
            "inputs": {
                k: sockets.get(v[0], v) if isinstance(v, list) else v
                for k, v in node["inputs"].items()
            },
        }
        for key, node in prompt.items()
        if key not in sockets
    }
    together = client.run(whole)
    a, b = (latent(client, r, "whole") for r in (parts, together))
    assert torch.isfinite(a).all()
    assert torch.allclose(a, b, atol=1e-3)
