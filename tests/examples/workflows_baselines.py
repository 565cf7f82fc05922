"""The methods that the paper compares itself with."""

from __future__ import annotations

from typing import Any

from examples.canvas import Workflow
from examples.parts import (
    IMAGE,
    KEEP_OUT,
    PHOTOGRAPH,
    SD15,
    SENTENCE,
    TRAINING,
    brought,
    encoded,
    given,
    sampled,
    saved,
    shown,
    whole_clip,
)


def baseline_sdedit() -> Workflow:
    """SDEdit: noise on the photograph, and from there to the sentence."""
    w = Workflow()
    g = given(w)
    w.column("SDEdit")
    w.note(
        "The paper's comparison, to see what Imagic adds: noise on the photograph, then the "
        "sentence. **denoise** is how much noise. Little of it changes nothing, much of it "
        "loses the photograph.",
        (320, 150),
    )
    edit = sampled(
        w, g.checkpoint["MODEL"], g.target, g.negative, g.latent,
        sampler_name="euler", steps=50, cfg=7.5, denoise=0.6,
    )  # fmt: skip
    shown(w, "SDEdit", edit, g.checkpoint["VAE"], "baseline_sdedit")
    return w


def baseline_ddib() -> Workflow:
    """DDIB: by DDIM to the noise of the photograph, and back under another sentence."""
    w = Workflow()
    w.column(PHOTOGRAPH)
    checkpoint, photograph = brought(w, SD15)
    w.column("Two sentences")
    w.note(
        "The paper's comparison, to see what Imagic adds. **The first sentence says what your "
        "photograph shows, the second what it shall show.** The empty one is the negative "
        "prompt.",
        (320, 150),
    )
    source, target, negative = (
        w.node(
            "CLIPTextEncode", (320, 110), title=title, clip=checkpoint["CLIP"], text=text
        )["CONDITIONING"]
        for title, text in (
            ("What it shows", "A photo of a cat"), ("Your sentence", SENTENCE), (KEEP_OUT, "")
        )
    )  # fmt: skip
    _, latent = encoded(w, photograph["IMAGE"], checkpoint["VAE"], 0.25)

    w.column("From the photograph to its noise")
    sigmas = w.node(
        "BasicScheduler", (320, 0), model=checkpoint["MODEL"], scheduler="normal", steps=50,
    )["SIGMAS"]  # fmt: skip
    flipped = w.node("FlipSigmas", (320, 0), sigmas=sigmas)["SIGMAS"]
    ddim = w.node("KSamplerSelect", (320, 0), sampler_name="ddim")["SAMPLER"]
    common: dict[str, Any] = {
        "model": checkpoint["MODEL"], "negative": negative, "sampler": ddim,
        "add_noise": False, "control_after_generate": "fixed",
    }  # fmt: skip
    noise = w.node(
        "SamplerCustom", (320, 0), **common, positive=source, sigmas=flipped,
        latent_image=latent, cfg=1.0,
    )  # fmt: skip
    w.column("From the noise to the edit")
    w.note(
        "**cfg** 1 goes back as it came: with the first sentence here, too, the photograph "
        "returns. Higher follows the second sentence more, and the photograph less.",
        (320, 140),
    )
    edit = w.node(
        "SamplerCustom", (320, 0), **common, positive=target, sigmas=sigmas,
        latent_image=noise["output"], cfg=3.0,
    )  # fmt: skip
    shown(w, "From the noise to the edit", edit["output"], checkpoint["VAE"], "baseline_ddib")
    return w


def baseline_text2live() -> Workflow:
    """Text2LIVE: a layer over the photograph, painted until CLIP finds the sentence in it."""
    w = Workflow()
    w.column(PHOTOGRAPH)
    loader = w.node("LoadImage", (300, 330), title="Your photograph", image=IMAGE)
    scaled = w.node(
        "ImageScaleToTotalPixels", (320, 0), image=loader["IMAGE"], upscale_method="lanczos",
        megapixels=0.25,
    )  # fmt: skip
    w.column("CLIP")
    w.note(
        "**No checkpoint, only CLIP**: one file in two folders, *models/clip_vision* and "
        "*models/text_encoders*. It must be a whole CLIP.",
        (320, 110),
    )
    clip_vision, clip = whole_clip(w)
    w.column("Text2LIVE")
    w.note(
        "The paper's comparison, to see what Imagic adds: a layer with an opacity of its own. It "
        "changes colours and textures, and moves nothing.\n\n**text** is your sentence, "
        "**source_text** says what the photograph shows, **layer_text** what is painted, "
        "**region_text** over what.",
        (320, 180),
    )
    painted = w.node(
        "ImagicText2Live", TRAINING, image=scaled["IMAGE"], clip_vision=clip_vision, clip=clip,
        text="a photo of a silver cat", source_text="a photo of a cat",
        layer_text="a silver cat", region_text="a cat",
    )  # fmt: skip
    w.column("Edit")
    saved(w, painted["image"], "baseline_text2live")
    mask = w.node("MaskToImage", (440, 0), title="Where it was painted", mask=painted["opacity"])
    w.node("PreviewImage", (440, 400), images=mask["IMAGE"])
    return w
