"""The example workflow as the prompt that ComfyUI's API takes, made for one photograph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from client import Prompt


def edit_prompt(
    checkpoint: str,
    image: str,
    sentence: str,
    etas: Iterable[float],
    *,
    megapixels: float = 0.25,
    seed: int = 0,
) -> Prompt:
    """Return a prompt that trains once and samples for each eta.

    ``checkpoint`` and ``image`` are names that the server knows. Node ids say what the node does;
    the picture for an eta is saved by the node ``save_id(eta)``.
    """
    prompt: Prompt = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "photograph": node("LoadImage", image=image),
        "scale": node(
            "ImageScaleToTotalPixels",
            image=["photograph", 0],
            upscale_method="lanczos",
            megapixels=megapixels,
            # New since 0.3.75, which ignores it.
            resolution_steps=1,
        ),
        "encode": node("VAEEncode", pixels=["scale", 0], vae=["checkpoint", 2]),
        "target": node("CLIPTextEncode", clip=["checkpoint", 1], text=sentence),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "stage A": node(
            "ImagicOptimizeEmbedding",
            model=["checkpoint", 0],
            target=["target", 0],
            image=["encode", 0],
            steps=100,
            learning_rate=1e-2,
            seed=seed,
        ),
        "stage B": node(
            "ImagicFinetuneModel",
            model=["checkpoint", 0],
            optimized=["stage A", 0],
            image=["encode", 0],
            method="lora",
            steps=100,
            learning_rate=1e-3,
            seed=seed,
        ),
    }
    for eta in etas:
        prompt |= {
            f"stage C, eta {eta:g}": node(
                "ImagicInterpolateConditioning",
                target=["target", 0],
                optimized=["stage A", 0],
                eta=eta,
            ),
            f"sample, eta {eta:g}": node(
                "KSampler",
                model=["stage B", 0],
                positive=[f"stage C, eta {eta:g}", 0],
                negative=["negative", 0],
                latent_image=["encode", 0],
                seed=seed,
                steps=30,
                cfg=4.0,
                sampler_name="euler",
                scheduler="normal",
                denoise=1.0,
            ),
            f"decode, eta {eta:g}": node(
                "VAEDecode", samples=[f"sample, eta {eta:g}", 0], vae=["checkpoint", 2]
            ),
            save_id(eta): node(
                "SaveImage", images=[f"decode, eta {eta:g}", 0], filename_prefix="imagic"
            ),
        }
    return prompt


def save_id(eta: float) -> str:
    """Id of the node that saves the picture for ``eta``."""
    return f"save, eta {eta:g}"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return one node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}
