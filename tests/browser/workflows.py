"""What each example workflow consists of. ``make_workflows.py`` lets the front end build them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NAMESPACE = uuid.UUID("7d2b4a0e-9f0c-4c59-8a53-4f2d5b8f6a11")


@dataclass(frozen=True)
class Output:
    """An output of a node, to be given to another node's input."""

    node: int
    name: str


@dataclass(frozen=True)
class Node:
    """A node of a workflow; ``node["MODEL"]`` is its output of that name."""

    index: int

    def __getitem__(self, output: str) -> Output:
        return Output(self.index, output)


@dataclass
class Workflow:
    """A workflow as ``build.js`` takes it. Nodes stand in the column begun last."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[int, str, int, str]] = field(default_factory=list)
    columns: list[dict[str, Any]] = field(default_factory=list)

    def column(self, title: str) -> None:
        """Begin a column; neighbours of one title share one frame."""
        self.columns.append({"title": title, "members": []})

    def node(
        self,
        kind: str,
        size: tuple[int, int] = (300, 0),
        models: tuple[dict[str, str], ...] = (),
        **inputs: Any,
    ) -> Node:
        """Add a node; an input is an ``Output`` to link, or the value of a widget.

        Args:
            kind: the node's id in the host.
            size: least width and height; the front end grows it to what the widgets need.
            models: where the front end offers to download the files that widgets name.
            inputs: all that does not keep its default.
        """
        index = len(self.nodes)
        widgets = {k: v for k, v in inputs.items() if not isinstance(v, Output)}
        for name, value in inputs.items():
            if isinstance(value, Output):
                self.links.append((value.node, value.name, index, name))
        self.nodes.append({"type": kind, "size": size, "widgets": widgets, "models": models})
        self.columns[-1]["members"].append(index)
        return Node(index)

    def note(self, text: str, size: tuple[int, int]) -> None:
        """Add a note in Markdown."""
        self.node("MarkdownNote", size, text=text)

    def description(self, name: str) -> dict[str, Any]:
        """What ``build.js`` takes; the same name gives the same id."""
        return {"id": str(uuid.uuid5(NAMESPACE, name)), **vars(self)}


SD15 = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors?download=true",
    "directory": "checkpoints",
}
# Below the widgets, room for the picture that the node shows while it trains.
TRAINING = (360, 700)


def imagic_edit() -> Workflow:
    """The whole method on one photograph, with an SD 1.x checkpoint."""
    w = Workflow()

    w.column("Your photograph, your sentence")
    checkpoint = w.node(
        "CheckpointLoaderSimple", (320, 0), (SD15,), ckpt_name=SD15["name"]
    )
    photograph = w.node("LoadImage", (320, 420), image="example.png")
    w.note(
        "**Load Checkpoint**: your model.\n\n**Load Image**: your photograph.\n\n"
        "The picture is scaled to the size that the model works at and keeps its aspect ratio. "
        "SD 1.x: 0.25 megapixels, as many as 512 x 512. SDXL: 1.",
        (320, 150),
    )

    w.column("Your photograph, your sentence")
    w.note(
        "**The text field below says what the picture shall show**, the whole of it: not *make "
        "the bird spread its wings* but *a photo of a bird spreading its wings*.\n\nThe empty "
        "one under it is the negative prompt; it takes no part in the training.",
        (400, 140),
    )
    target = w.node(
        "CLIPTextEncode", (400, 140), clip=checkpoint["CLIP"],
        text="A photo of a bird spreading its wings",
    )  # fmt: skip
    negative = w.node("CLIPTextEncode", (400, 110), clip=checkpoint["CLIP"], text="")
    scaled = w.node(
        "ImageScaleToTotalPixels", (400, 0), image=photograph["IMAGE"],
        upscale_method="lanczos", megapixels=0.25,
    )  # fmt: skip
    latent = w.node("VAEEncode", (400, 0), pixels=scaled["IMAGE"], vae=checkpoint["VAE"])

    w.column("Learn the photograph: once for each photograph and sentence")
    optimized = w.node(
        "ImagicOptimizeEmbedding", TRAINING, model=checkpoint["MODEL"],
        target=target["CONDITIONING"], image=latent["LATENT"],
    )  # fmt: skip
    w.column("Learn the photograph: once for each photograph and sentence")
    tuned = w.node(
        "ImagicFinetuneModel", TRAINING, model=checkpoint["MODEL"],
        optimized=optimized["optimized"], image=latent["LATENT"],
    )  # fmt: skip

    w.column("Edit")
    w.note(
        "**eta** goes from your photograph (0) to your sentence (1).\n\n"
        "- Too little has changed: raise it.\n- The photograph is lost: lower it.\n"
        "- Not your photograph even at 0: raise *steps* of Imagic Fine-tune Model.\n\n"
        "A new eta does not train again: change it and run.",
        (360, 170),
    )
    mixed = w.node(
        "ImagicInterpolateConditioning", (360, 0), target=target["CONDITIONING"],
        optimized=optimized["optimized"],
    )  # fmt: skip
    sampled = w.node(
        "KSampler", (360, 0), model=tuned["model"], positive=mixed["conditioning"],
        negative=negative["CONDITIONING"], latent_image=latent["LATENT"],
        seed=0, control_after_generate="fixed", steps=30, cfg=4.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    w.column("Edit")
    decoded = w.node("VAEDecode", (480, 0), samples=sampled["LATENT"], vae=checkpoint["VAE"])
    w.node("SaveImage", (480, 580), images=decoded["IMAGE"], filename_prefix="imagic_edit")
    return w


WORKFLOWS: dict[str, Callable[[], Workflow]] = {"imagic_edit": imagic_edit}
