"""What each example workflow consists of. ``make_workflows.py`` lets the front end build them."""

from __future__ import annotations

from collections.abc import Callable

from examples import workflows_baselines, workflows_models
from examples.canvas import Workflow
from examples.parts import (
    Model,
    decoded,
    edited,
    given,
    learned,
    mixed,
    sampled,
    saved,
    shown,
)

# The text and the vision encoder of one CLIP, with the projections of both.
CLIP = {
    "name": "clip-vit-large-patch14.safetensors",
    "url": "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
}
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
    _, _, edit = edited(w, g)
    shown(w, "Edit", edit, g.checkpoint["VAE"], "imagic_edit")
    return w


def imagic_inversion() -> Workflow:
    """The edit drawn from the photograph's own noise, so that what is around it stays in place."""
    w = Workflow()
    g = given(w)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    title = "From the photograph to its noise"
    w.column(title)
    w.note(
        "**The noise from which the model, as loaded, would have drawn your photograph.** It "
        "knows where the sun and the clouds are; a seed's noise does not.\n\nFor models that "
        "predict noise or v: Stable Diffusion 1.x, 2.x, XL.",
        (360, 150),
    )
    sigmas = w.node(
        "BasicScheduler", (360, 0), model=g.checkpoint["MODEL"], scheduler="normal", steps=50
    )
    flipped = w.node("FlipSigmas", (360, 0), sigmas=sigmas["SIGMAS"])
    # of second order: what Euler's steps of this number find is far from noise
    heun = w.node("KSamplerSelect", (360, 0), sampler_name="heun")
    noise = w.node(
        "SamplerCustom", (360, 0), model=g.checkpoint["MODEL"], add_noise=False, cfg=1.0,
        positive=optimized["optimized"], negative=g.negative, sampler=heun["SAMPLER"],
        sigmas=flipped["SIGMAS"], latent_image=g.latent, control_after_generate="fixed",
    )  # fmt: skip

    mix = mixed(
        w, g.target, optimized["optimized"],
        "**eta** goes from your photograph (0) to your sentence (1). From the photograph's own "
        "noise the edit comes at a higher eta than from a seed's.\n\n"
        "- Too little has changed: raise it.\n- The photograph is lost: lower it.\n"
        "- It comes at no eta: draw from a seed's noise, with *imagic_edit*.\n\n"
        "A new eta does not train again: change it and run.",
        eta=1.1,
    )  # fmt: skip
    edit = w.node(
        "KSamplerAdvanced", (360, 0), model=tuned["model"], positive=mix, negative=g.negative,
        latent_image=noise["output"], add_noise="disable", steps=30, cfg=4.0,
        sampler_name="euler", scheduler="normal", control_after_generate="fixed",
    )  # fmt: skip
    shown(w, "Edit", edit["LATENT"], g.checkpoint["VAE"], "imagic_inversion")
    return w


def imagic_eta_sheet() -> Workflow:
    """The paper's figure 7: a range of eta on one noise, before and after fine-tuning."""
    w = Workflow()
    g = given(w)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    w.column("A range of eta")
    w.note(
        "**Choose the range and how many eta.** Each is one picture for each row; all have the "
        "same noise.\n\nFor several seeds of each eta: *Repeat Latent Batch* between VAE Encode "
        "and KSampler, each seed is then a row.",
        (360, 150),
    )
    sweep = w.node(
        "ImagicEtaSweep", (360, 0), target=g.target, optimized=optimized["optimized"]
    )
    rows = {}
    for title, model in (
        ("As fine-tuned", tuned["model"]),
        ("As loaded, for comparison", g.checkpoint["MODEL"]),
    ):
        w.column(title)
        drawn = sampled(w, model, sweep["conditioning"], g.negative, g.latent)
        rows[title] = decoded(w, drawn, g.checkpoint["VAE"])
    w.column("Choose")
    sheet = w.node(
        "ImagicContactSheet", (480, 0), images=rows["As fine-tuned"], etas=sweep["etas"],
        pretrained=rows["As loaded, for comparison"], original=g.photograph,
    )  # fmt: skip
    saved(w, sheet["sheet"], "imagic_eta_sheet", (960, 400))

    w.column("Keep")
    w.note(
        "**Imagic Save Edit** writes what was learned to ComfyUI's output folder. The workflow "
        "*imagic_reuse* draws from that file without training.",
        (360, 110),
    )
    w.node(
        "ImagicSaveEdit", (360, 0), model=g.checkpoint["MODEL"], optimized=optimized["optimized"],
        target=g.target, lora=tuned["lora"], image=g.latent, optimized_loss=optimized["loss"],
        model_loss=tuned["loss"],
    )  # fmt: skip
    return w


def imagic_choose_eta() -> Workflow:
    """The paper's figure 9: fidelity and alignment over eta, and the eta that they recommend."""
    w = Workflow()
    g = given(w, shared=True)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    w.column("A range of eta")
    sweep = w.node(
        "ImagicEtaSweep", (360, 0), target=g.target, optimized=optimized["optimized"],
        start=0.1, stop=1.0, count=10,
    )  # fmt: skip
    drawn = sampled(w, tuned["model"], sweep["conditioning"], g.negative, g.latent)
    pictures = decoded(w, drawn, g.checkpoint["VAE"])

    w.column("Measure")
    w.note(
        "Fidelity is measured against your photograph, alignment by **CLIP against your "
        "sentence**. CLIP is one file in two folders: *models/clip_vision* and "
        "*models/text_encoders*. It must be a whole CLIP; the text encoders that come with "
        "checkpoints lack what the score needs.\n\nWithout CLIP: delete both loaders, and "
        "fidelity alone recommends.",
        (380, 220),
    )
    vision: Model = {**CLIP, "directory": "clip_vision"}
    text: Model = {**CLIP, "directory": "text_encoders"}
    clip_vision = w.node("CLIPVisionLoader", (380, 0), (vision,), clip_name=CLIP["name"])
    clip = w.node(
        "CLIPLoader", (380, 0), (text,), clip_name=CLIP["name"], type="stable_diffusion"
    )
    score = w.node(
        "ImagicScoreEdits", (380, 0), images=pictures, original=g.photograph, etas=sweep["etas"],
        clip_vision=clip_vision["CLIP_VISION"], clip=clip["CLIP"], text=g.sentence,
    )  # fmt: skip
    w.node("PreviewAny", (380, 320), source=score["table"])

    w.column("Choose")
    w.note(
        "The curves **recommend**, you choose: look at the sheet, too. The value goes into *eta* "
        "of Imagic Interpolate Conditioning.",
        (480, 90),
    )
    w.node("PreviewImage", (480, 340), images=score["curves"])
    saved(w, score["recommended_image"], "imagic_choose_eta")
    w.column("Choose")
    sheet = w.node(
        "ImagicContactSheet", (480, 0), images=pictures, etas=sweep["etas"], original=g.photograph
    )
    w.node("PreviewImage", (960, 340), images=sheet["sheet"])
    return w


def imagic_reuse() -> Workflow:
    """A saved edit and another sentence: nothing is trained."""
    w = Workflow()
    g = given(w, sentence="A photo of a bird with its head under its wing")
    w.column("What was learned")
    w.note(
        "**Choose your edit**: a file of Imagic Save Edit, which the workflow *imagic_eta_sheet* "
        "writes. Load the same checkpoint and the same photograph as then; below it is said "
        "what they were.\n\nThe sentence may be another one. Without a link to *target* it is "
        "the one that was saved.",
        (360, 190),
    )
    edit = w.node(
        "ImagicLoadEdit", (360, 0), model=g.checkpoint["MODEL"], edit=EDIT_FILE, target=g.target
    )
    w.node("PreviewAny", (360, 280), source=edit["info"])
    mix = mixed(
        w, edit["target"], edit["optimized"],
        "**eta** goes from your photograph (0) to the sentence (1).\n\nA sentence far from the "
        "one that was learned with needs another eta, often a lower one.",
    )  # fmt: skip
    drawn = sampled(w, edit["model"], mix, g.negative, g.latent)
    shown(w, "Edit", drawn, g.checkpoint["VAE"], "imagic_reuse")
    return w


def imagic_upscale() -> Workflow:
    """An edit, enlarged by an upscale model and drawn once more over it by the model that knows."""
    w = Workflow()
    g = given(w)
    tuned, mix, edit = edited(w, g)
    small = shown(w, "Edit", edit, g.checkpoint["VAE"], "imagic_edit")

    w.column("Enlarge")
    w.note(
        "The upscale model enlarges four times; **scale_by** 0.5 leaves two. The fine-tuned "
        "model then draws the details of your photograph: **denoise** says how much of the "
        "picture it may change.",
        (360, 130),
    )
    upscaler = w.node("UpscaleModelLoader", (360, 0), (ESRGAN,), model_name=ESRGAN["name"])
    large = w.node(
        "ImageUpscaleWithModel", (360, 0), upscale_model=upscaler["UPSCALE_MODEL"], image=small
    )
    half = w.node(
        "ImageScaleBy", (360, 0), image=large["IMAGE"], upscale_method="lanczos", scale_by=0.5
    )
    again = w.node("VAEEncode", (360, 0), pixels=half["IMAGE"], vae=g.checkpoint["VAE"])
    # from a picture, not from noise: here new noise would only take away what is already drawn
    drawn = sampled(
        w, tuned, mix, g.negative, again["LATENT"],
        sampler_name="euler", steps=20, denoise=0.35,
    )  # fmt: skip
    shown(w, "Enlarge", drawn, g.checkpoint["VAE"], "imagic_upscale")
    return w


WORKFLOWS: dict[str, Callable[[], Workflow]] = {
    function.__name__: function
    for function in (
        imagic_edit,
        imagic_inversion,
        imagic_eta_sheet,
        imagic_choose_eta,
        imagic_reuse,
        imagic_upscale,
        workflows_models.imagic_sdxl,
        workflows_models.imagic_flux,
        workflows_models.imagic_cascade,
        workflows_baselines.baseline_sdedit,
        workflows_baselines.baseline_ddib,
    )
}
