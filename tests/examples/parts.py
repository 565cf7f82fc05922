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
SENTENCE = "A photo of a bird spreading its wings"
PHOTOGRAPH = "Your photograph, your sentence"
LEARN = "Learn the photograph: once for each photograph and sentence"
# Below the widgets, room for the picture that the node shows while it trains.
TRAINING = (360, 700)


@dataclass(frozen=True)
class Given:
    """What a user brings, ready for the nodes of the pack."""

    checkpoint: Node
    loaded: Output
    """IMAGE as in the file."""
    photograph: Output
    """IMAGE at the size that the model works at."""
    latent: Output
    sentence: Output | None
    """The sentence as text, where more than one node reads it."""
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
    checkpoint = w.node(
        "CheckpointLoaderSimple", (320, 0), (model,), ckpt_name=model["name"]
    )
    photograph = w.node("LoadImage", (320, 420), image="example.png")
    w.note(
        "**Load Checkpoint**: your model.\n\n**Load Image**: your photograph.\n\n"
        "The picture is scaled to the size that the model works at and keeps its aspect ratio. "
        + size_note,
        (320, 150),
    )

    w.column(PHOTOGRAPH)
    w.note(
        "**The text field below says what the picture shall show**, the whole of it: not *make "
        "the bird spread its wings* but *a photo of a bird spreading its wings*.\n\nThe empty "
        "one under it is the negative prompt; it takes no part in the training.",
        (400, 140),
    )
    text, height = None, 140
    if shared:
        text, height = w.node("PrimitiveStringMultiline", (400, 100), value=sentence)["STRING"], 0
    target = w.node(
        "CLIPTextEncode", (400, height), clip=checkpoint["CLIP"], text=text or sentence
    )
    negative = w.node("CLIPTextEncode", (400, 110), clip=checkpoint["CLIP"], text="")
    scaled, latent = encoded(w, photograph["IMAGE"], checkpoint["VAE"], megapixels)
    return Given(
        checkpoint, photograph["IMAGE"], scaled, latent, text, target["CONDITIONING"],
        negative["CONDITIONING"],
    )  # fmt: skip


def encoded(
    w: Workflow, image: Output, vae: Output, megapixels: float
) -> tuple[Output, Output]:
    """The photograph at a size, as IMAGE and as LATENT."""
    scaled = w.node(
        "ImageScaleToTotalPixels", (400, 0), image=image,
        upscale_method="lanczos", megapixels=megapixels,
    )  # fmt: skip
    latent = w.node("VAEEncode", (400, 0), pixels=scaled["IMAGE"], vae=vae)
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
    w: Workflow, target: Output, optimized: Output, note: str = ETA_NOTE, **settings: Any
) -> Output:
    """Begin the column of stage C."""
    w.column("Edit")
    w.note(note, (360, 215))
    node = w.node(
        "ImagicInterpolateConditioning", (360, 0), target=target, optimized=optimized, **settings
    )
    return node["conditioning"]


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
        "KSampler", (360, 0), model=model, positive=positive, negative=negative,
        latent_image=latent, **{**usual, **settings},
    )  # fmt: skip
    return node["LATENT"]


def decoded(w: Workflow, latent: Output, vae: Output, width: int = 360) -> Output:
    """LATENT as IMAGE."""
    return w.node("VAEDecode", (width, 0), samples=latent, vae=vae)["IMAGE"]


def edited(
    w: Workflow, g: Given, **settings: str | float
) -> tuple[Output, Output, Output]:
    """Stages A to C and the KSampler: the MODEL that learned, the CONDITIONING, the LATENT."""
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)
    mix = mixed(w, g.target, optimized["optimized"])
    edit = sampled(w, tuned["model"], mix, g.negative, g.latent, **settings)
    return tuned["model"], mix, edit


def saved(
    w: Workflow, image: Output, name: str, size: tuple[int, int] = (480, 580)
) -> None:
    """Show and save a picture."""
    w.node("SaveImage", size, images=image, filename_prefix=name)


def shown(w: Workflow, column: str, latent: Output, vae: Output, name: str) -> Output:
    """Show and save what was sampled, in one more column of that title; the IMAGE."""
    w.column(column)
    image = decoded(w, latent, vae, 480)
    saved(w, image, name)
    return image
