"""Example workflows for other models than Stable Diffusion 1.x, and for two models in a row."""

from __future__ import annotations

from examples.canvas import Workflow
from examples.parts import (
    EDIT,
    TRAINING,
    Given,
    Model,
    decoded,
    edited,
    encoded,
    given,
    learned,
    mixed,
    sampled,
    shown,
)

SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
    "sd_xl_base_1.0.safetensors?download=true",
    "directory": "checkpoints",
}
FLUX = {
    "name": "flux1-dev-fp8.safetensors",
    "url": "https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/"
    "flux1-dev-fp8.safetensors?download=true",
    "directory": "checkpoints",
}
X4 = {
    "name": "x4-upscaler-ema.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-x4-upscaler/resolve/main/"
    "x4-upscaler-ema.safetensors?download=true",
    "directory": "checkpoints",
}


def given_large(w: Workflow, model: Model, name: str, less: float) -> Given:
    """What a user brings to a model of a megapixel; ``less`` is for less memory."""
    note = f"{name}: 1 megapixel, as many as 1024 x 1024. Short of memory: {less}, and "
    return given(w, model, 1.0, size_note=f"{note}*save_memory* on in both trainings.")


def imagic_sdxl() -> Workflow:
    """The edit with Stable Diffusion XL."""
    w = Workflow()
    g = given_large(w, SDXL, "SDXL", less=0.6)
    shown(w, EDIT, edited(w, g, cfg=5.0).latent, g.checkpoint["VAE"], "imagic_sdxl")
    return w


def imagic_flux() -> Workflow:
    """The edit with Flux, whose guidance is part of the conditioning."""
    w = Workflow()
    g = given_large(w, FLUX, "Flux", less=0.5)
    w.note(
        "Flux takes its guidance beside the text. **It learns at 1**, without guidance, and "
        "**draws at 3.5**; lower looks more like a photograph. *cfg* stays 1: the negative "
        "prompt does nothing.",
        (320, 160),
    )
    plain = w.node("FluxGuidance", (320, 0), conditioning=g.target, guidance=1.0)
    target = plain["CONDITIONING"]
    optimized, tuned = learned(w, g.checkpoint, target, g.latent)
    mix = mixed(w, target, optimized["optimized"])
    guided = w.node("FluxGuidance", (320, 0), conditioning=mix["conditioning"], guidance=3.5)
    edit = sampled(
        w, tuned["model"], guided["CONDITIONING"], g.negative, g.latent,
        cfg=1.0, steps=20, scheduler="simple",
    )  # fmt: skip
    shown(w, EDIT, edit, g.checkpoint["VAE"], "imagic_flux")
    return w


def imagic_cascade() -> Workflow:
    """The paper's Imagen version: a base model, then a super-resolution model that learns, too."""
    w = Workflow()
    g = given(w, shared=True)
    w.note(
        "As the paper does with Imagen: a base model edits, and **a super-resolution model, "
        "taught the photograph's details under your sentence**, draws the result larger. Each "
        "checkpoint has a text encoder and a VAE of its own.",
        (320, 150),
    )
    e = edited(w, g)
    small = decoded(w, e.latent, g.checkpoint["VAE"])

    title = "Learn the photograph's details: Stable Diffusion x4 upscaler"
    w.column(title)
    w.note(
        "The upscaler learns your photograph at **megapixels** from its own picture at a quarter "
        "of the width. Four times the megapixels above makes the result as large as this one.\n\n"
        "**noise_augmentation** is the noise on the small picture. More lets the upscaler draw "
        "more of its own; keep it the same in both places.",
        (320, 240),
    )
    upscaler = w.node("CheckpointLoaderSimple", (320, 0), (X4,), ckpt_name=X4["name"])
    texts = [
        w.node("CLIPTextEncode", (320, 110), clip=upscaler["CLIP"], text=text)["CONDITIONING"]
        for text in (g.text["STRING"], "")
    ]
    positive, negative = texts
    large, latent = encoded(w, g.loader["IMAGE"], upscaler["VAE"], 1.0)
    quarter = w.node("ImageScaleBy", (320, 0), image=large, upscale_method="area", scale_by=0.25)
    w.column(title)
    with_photograph = w.node(
        "SD_4XUpscale_Conditioning", (320, 0), images=quarter["IMAGE"], positive=positive,
        negative=negative, noise_augmentation=0.1,
    )  # fmt: skip
    tuned_upscaler = w.node(
        "ImagicFinetuneModel", TRAINING, model=upscaler["MODEL"],
        optimized=with_photograph["positive"], image=latent,
    )  # fmt: skip

    w.column("Enlarge the edit")
    half = w.node("ImageScaleBy", (320, 0), image=small, upscale_method="area", scale_by=0.5)
    with_edit = w.node(
        "SD_4XUpscale_Conditioning", (320, 0), images=half["IMAGE"], positive=positive,
        negative=negative, noise_augmentation=0.1,
    )  # fmt: skip
    drawn = sampled(
        w, tuned_upscaler["model"], with_edit["positive"], with_edit["negative"],
        with_edit["latent"],
    )  # fmt: skip
    shown(w, "Enlarge the edit", drawn, upscaler["VAE"], "imagic_cascade")
    return w
