"""What each example workflow consists of. ``make_workflows.py`` lets the front end build them."""

from __future__ import annotations

from collections.abc import Callable

from examples import workflows_baselines, workflows_eta, workflows_models
from examples.canvas import Workflow
from examples.parts import (
    EDIT,
    decoded,
    edited,
    given,
    learned,
    mixed,
    sampled,
    saved,
    shown,
)

ESRGAN = {
    "name": "RealESRGAN_x4plus.safetensors",
    "url": "https://huggingface.co/Comfy-Org/Real-ESRGAN_repackaged/resolve/main/"
    "RealESRGAN_x4plus.safetensors",
    "directory": "upscale_models",
}
EDIT_FILE = "imagic/edit_00001_.safetensors [output]"


def imagic_edit() -> Workflow:
    """The whole method on one photograph, with an SD 1.x checkpoint."""
    w = Workflow()
    g = given(w)
    shown(w, EDIT, edited(w, g).latent, g.checkpoint["VAE"], "imagic_edit")
    return w


def imagic_app() -> Workflow:
    """The same, which opens as a form where the front end has apps."""
    w = Workflow()
    g = given(w)
    e = edited(w, g)
    picture = shown(w, EDIT, e.latent, g.checkpoint["VAE"], "imagic_edit")
    w.as_app(
        {
            "Your photograph": (g.loader, "image"),
            "Your sentence": (g.text, "text"),
            "Your checkpoint": (g.checkpoint, "ckpt_name"),
            "How far to go (eta)": (e.mix, "eta"),
        },
        [picture],
    )
    return w


def imagic_inversion() -> Workflow:
    """The edit drawn from the photograph's own noise, so that what is around it stays in place."""
    w = Workflow()
    g = given(w)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    mix = mixed(
        w, g.target, optimized["optimized"],
        "**Half of the noise is the one from which the model, as loaded, would have drawn your "
        "photograph.** It knows where the sun and the clouds are; a seed's noise does not.\n\n"
        "- **eta** goes from your photograph (0) to your sentence (1).\n"
        "- **share**: how much of the noise is the photograph's. More moves elsewhere than it "
        "should: raise it. The edit comes at no eta: lower it.\n"
        "- Keep a sampler that adds no noise of its own: *euler*, *dpmpp_2m*.\n\n"
        "A new eta or share does not train again: change it and run.",
        height=300, eta=1.1,
    )  # fmt: skip
    begun = w.node(
        "ImagicPhotographNoise", (320, 0), model=tuned["model"], as_loaded=g.checkpoint["MODEL"],
        optimized=optimized["optimized"], image=g.latent,
    )  # fmt: skip
    drawn = sampled(
        w, begun["model"], mix["conditioning"], g.negative, g.latent, sampler_name="euler"
    )
    shown(w, EDIT, drawn, g.checkpoint["VAE"], "imagic_inversion")
    return w


def imagic_reuse() -> Workflow:
    """A saved edit and another sentence: nothing is trained."""
    w = Workflow()
    g = given(w, sentence="A photo of a cat wearing glasses")
    w.column("What was learned")
    w.note(
        "**Choose your edit**: a file of Imagic Save Edit, as *Compare a range of eta* writes it. "
        "Load the same checkpoint and the same photograph as then; below it is said what they "
        "were.\n\nThe sentence may be another one. Without a link to *target* it is the one that "
        "was saved.",
        (320, 210),
    )
    edit = w.node(
        "ImagicLoadEdit", (320, 0), title="Your edit",
        model=g.checkpoint["MODEL"], edit=EDIT_FILE, target=g.target,
    )  # fmt: skip
    w.node("PreviewAny", (320, 280), source=edit["info"])
    mix = mixed(
        w, edit["target"], edit["optimized"],
        "**eta** goes from your photograph (0) to the sentence (1).\n\nA sentence far from the "
        "one that was learned with needs another eta, often a lower one.",
    )  # fmt: skip
    drawn = sampled(w, edit["model"], mix["conditioning"], g.negative, g.latent)
    shown(w, EDIT, drawn, g.checkpoint["VAE"], "imagic_reuse")
    return w


def imagic_upscale() -> Workflow:
    """An edit, enlarged by an upscale model and drawn once more over it by the model that knows."""
    w = Workflow()
    g = given(w)
    e = edited(w, g)
    w.column(EDIT)
    small = decoded(w, e.latent, g.checkpoint["VAE"])
    saved(w, small, "imagic_edit", (320, 400))

    w.column("Enlarge")
    w.note(
        "The upscale model enlarges four times; **scale_by** 0.5 leaves two. The fine-tuned "
        "model then draws the details of your photograph: **denoise** says how much of the "
        "picture it may change.",
        (320, 150),
    )
    upscaler = w.node("UpscaleModelLoader", (320, 0), (ESRGAN,), model_name=ESRGAN["name"])
    large = w.node(
        "ImageUpscaleWithModel", (320, 0), upscale_model=upscaler["UPSCALE_MODEL"], image=small
    )
    half = w.node(
        "ImageScaleBy", (320, 0), image=large["IMAGE"], upscale_method="lanczos", scale_by=0.5
    )
    again = w.node("VAEEncode", (320, 0), pixels=half["IMAGE"], vae=g.checkpoint["VAE"])
    # from a picture, not from noise: here new noise would only take away what is already drawn
    drawn = sampled(
        w, e.model, e.mix["conditioning"], g.negative, again["LATENT"],
        sampler_name="euler", steps=20, denoise=0.35,
    )  # fmt: skip
    shown(w, "Enlarge", drawn, g.checkpoint["VAE"], "imagic_upscale")
    return w


_IN_ORDER: dict[str, Callable[[], Workflow]] = {
    "Edit a photograph": imagic_edit,
    "Edit a photograph.app": imagic_app,
    "Find the best eta": workflows_eta.imagic_find_eta,
    "Compare a range of eta": workflows_eta.imagic_eta_sheet,
    "Choose eta by curves": workflows_eta.imagic_choose_eta,
    "Keep what is around": imagic_inversion,
    "Use a saved edit again": imagic_reuse,
    "Enlarge the edit": imagic_upscale,
    "Edit with SDXL": workflows_models.imagic_sdxl,
    "Edit with Flux": workflows_models.imagic_flux,
    "Cascade with the x4 upscaler": workflows_models.imagic_cascade,
    "Baseline SDEdit": workflows_baselines.baseline_sdedit,
    "Baseline DDIB": workflows_baselines.baseline_ddib,
    "Baseline Text2LIVE": workflows_baselines.baseline_text2live,
}
WORKFLOWS = {function.__name__: function for function in _IN_ORDER.values()}
# The template browser shows a file's name and nothing else; one that ends in .app is listed as one.
TITLES = {
    function.__name__: f"{number:02} {title}"
    for number, (title, function) in enumerate(_IN_ORDER.items(), 1)
}
# Begins as a search for "edit photo" does, which ranks by names alone.
BLUEPRINTS = {"Edit photograph (Imagic)": workflows_eta.imagic_box}
