"""The methods that the paper compares itself with, by the host's own nodes alone."""

from __future__ import annotations

from typing import Any

from examples.canvas import Workflow
from examples.parts import (
    KEEP_OUT,
    PHOTOGRAPH,
    SD15,
    SENTENCE,
    brought,
    encoded,
    given,
    sampled,
    shown,
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
