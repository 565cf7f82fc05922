"""What several example workflows have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examples.canvas import Node, Output, Workflow

Model = dict[str, str]

SD15 = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors?download=true",
    "directory": "checkpoints",
}
# The text and the vision encoder of one CLIP, with the projections of both.
CLIP = {
    "name": "clip-vit-large-patch14.safetensors",
    "url": "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
}
SENTENCE = "A photo of a sleeping cat"
IMAGE = "imagic_cat.jpg"
"""The photograph that the pack puts into ComfyUI's input folder."""
PHOTOGRAPH = "Your photograph, your sentence"
LEARN = "Learn the photograph, once"
EDIT = "Edit"
KEEP_OUT = "What to keep out"
# Below the widgets, room for the picture that the node shows while it trains.
TRAINING = (320, 620)


@dataclass(frozen=True)
class Given:
    """What a user brings, ready for the nodes of the pack."""

    checkpoint: Node
    loader: Node
    """Load Image; its IMAGE is as in the file."""
    photograph: Output
    """IMAGE at the size that the model works at."""
    latent: Output
    text: Node
    """The node whose text is the sentence."""
    target: Output
    negative: Output


def given(
    w: Workflow,
    model: Model = SD15,
    megapixels: float = 0.25,
    sentence: str = SENTENCE,
    shared: bool = False,
    size_note: str = "SD 1.x: 0.25 megapixels, as many as 512 x 512. SDXL: 1.",
) -> Given:
    """Checkpoint, photograph, sentence: two columns.

    Args:
        w: where to add them.
        model: the checkpoint.
        megapixels: size that the photograph is scaled to.
        sentence: what the picture shall show.
        shared: whether other nodes read the sentence, too.
        size_note: what to say of ``megapixels``.
    """
    w.column(PHOTOGRAPH)
    checkpoint, loader = brought(w, model)
    w.note(
        "The photograph keeps its aspect ratio and is scaled to **megapixels**, the size that "
        "the model works at. " + size_note,
        (300, 140),
    )

    w.column(PHOTOGRAPH)
    w.note(
        "**Say what the whole picture shall show**: not *make the cat sleep* but *a photo of a "
        "sleeping cat*.",
        (320, 90),
    )
    says, text = "Your sentence", None
    if shared:
        text = w.node("PrimitiveStringMultiline", (320, 120), title=says, value=sentence)
    target = w.node(
        "CLIPTextEncode", (320, 0 if text else 140), clip=checkpoint["CLIP"],
        text=text["STRING"] if text else sentence, title="" if text else says,
    )  # fmt: skip
    negative = w.node(
        "CLIPTextEncode", (320, 110), clip=checkpoint["CLIP"], text="", title=KEEP_OUT
    )
    scaled, latent = encoded(w, loader["IMAGE"], checkpoint["VAE"], megapixels)
    return Given(
        checkpoint, loader, scaled, latent, text or target, target["CONDITIONING"],
        negative["CONDITIONING"],
    )  # fmt: skip


def brought(w: Workflow, model: Model) -> tuple[Node, Node]:
    """The nodes that load the checkpoint and the photograph."""
    checkpoint = w.node(
        "CheckpointLoaderSimple", (300, 0), (model,), "Your checkpoint", ckpt_name=model["name"]
    )
    return checkpoint, w.node("LoadImage", (300, 330), title="Your photograph", image=IMAGE)


def whole_clip(w: Workflow) -> tuple[Output, Output]:
    """CLIP_VISION and CLIP of one file in two folders."""
    vision: Model = {**CLIP, "directory": "clip_vision"}
    text: Model = {**CLIP, "directory": "text_encoders"}
    seeing = w.node("CLIPVisionLoader", (320, 0), (vision,), clip_name=CLIP["name"])
    reading = w.node(
        "CLIPLoader", (320, 0), (text,), clip_name=CLIP["name"], type="stable_diffusion"
    )
    return seeing["CLIP_VISION"], reading["CLIP"]


def encoded(w: Workflow, image: Output, vae: Output, megapixels: float) -> tuple[Output, Output]:
    """The photograph at a size, as IMAGE and as LATENT."""
    scaled = w.node(
        "ImageScaleToTotalPixels", (320, 0), image=image,
        upscale_method="lanczos", megapixels=megapixels,
    )  # fmt: skip
    latent = w.node("VAEEncode", (320, 0), pixels=scaled["IMAGE"], vae=vae)
    return scaled["IMAGE"], latent["LATENT"]


def learned(w: Workflow, checkpoint: Node, target: Output, latent: Output) -> tuple[Node, Node]:
    """Stages A and B, a column each."""
    w.column(LEARN)
    optimized = w.node(
        "ImagicOptimizeEmbedding", TRAINING, model=checkpoint["MODEL"], target=target, image=latent
    )
    w.column(LEARN)
    tuned = w.node(
        "ImagicFinetuneModel", TRAINING, model=checkpoint["MODEL"],
        optimized=optimized["optimized"], image=latent,
    )  # fmt: skip
    return optimized, tuned


ETA_NOTE = (
    "**eta** goes from your photograph (0) to your sentence (1).\n\n"
    "- Too little has changed: raise it.\n- The photograph is lost: lower it.\n"
    "- Not your photograph even at 0: raise *steps* of Imagic Fine-tune Model.\n"
    "- Keep a sampler of the *ancestral* or *sde* kind: more of the photograph comes back.\n\n"
    "A new eta does not train again: change it and run."
)


def mixed(
    w: Workflow,
    target: Output,
    optimized: Output,
    note: str = ETA_NOTE,
    height: int = 250,
    **settings: Any,
) -> Node:
    """Begin the column of stage C, with a note of that height."""
    w.column(EDIT)
    w.note(note, (320, height))
    return w.node(
        "ImagicInterpolateConditioning", (320, 0), target=target, optimized=optimized, **settings
    )


def sampled(
    w: Workflow,
    model: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    **settings: Any,
) -> Output:
    """A KSampler whose seed stays, so that only what the user changes changes the picture.

    Its sampler adds new noise at each step, which lets later steps mend what the first ones got
    wrong: more of the photograph comes back than with `euler` (README, "Choosing eta").
    """
    usual: dict[str, str | float] = {
        "seed": 0, "control_after_generate": "fixed", "steps": 30, "cfg": 4.0,
        "sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    node = w.node(
        "KSampler", (320, 0), model=model, positive=positive, negative=negative,
        latent_image=latent, **{**usual, **settings},
    )  # fmt: skip
    return node["LATENT"]


def decoded(w: Workflow, latent: Output, vae: Output, width: int = 320) -> Output:
    """LATENT as IMAGE."""
    return w.node("VAEDecode", (width, 0), samples=latent, vae=vae)["IMAGE"]


@dataclass(frozen=True)
class Edited:
    """The three stages and what was drawn."""

    model: Output
    """MODEL that learned."""
    mix: Node
    """Imagic Interpolate Conditioning."""
    latent: Output


def edited(w: Workflow, g: Given, **settings: str | float) -> Edited:
    """Stages A to C and the KSampler."""
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)
    mix = mixed(w, g.target, optimized["optimized"])
    drawn = sampled(w, tuned["model"], mix["conditioning"], g.negative, g.latent, **settings)
    return Edited(tuned["model"], mix, drawn)


def saved(w: Workflow, image: Output, name: str, size: tuple[int, int] = (440, 500)) -> Node:
    """Show and save a picture."""
    return w.node("SaveImage", size, images=image, filename_prefix=name)


def shown(w: Workflow, column: str, latent: Output, vae: Output, name: str) -> Node:
    """Show and save what was sampled, in one more column of that title; what saves it."""
    w.column(column)
    return saved(w, decoded(w, latent, vae, 440), name)
