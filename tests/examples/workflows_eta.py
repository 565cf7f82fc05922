"""Example workflows that look for the eta of an edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examples.canvas import Node, Output, Workflow
from examples.parts import Given, decoded, given, learned, sampled, saved, whole_clip

SHEET = (620, 300)
"""Size of a node that shows a row of pictures."""


@dataclass(frozen=True)
class Swept:
    """A range of eta and the pictures drawn at it."""

    sweep: Node
    sampler: Node
    pictures: Output


def swept(w: Workflow, g: Given, model: Output, optimized: Output, **span: Any) -> Swept:
    """Draw a range of eta, each with the same noise."""
    sweep = w.node("ImagicEtaSweep", (320, 0), target=g.target, optimized=optimized, **span)
    drawn = sampled(w, model, sweep["conditioning"], g.negative, g.latent)
    return Swept(sweep, Node(drawn.node), decoded(w, drawn, g.checkpoint["VAE"]))


def scored(w: Workflow, g: Given, drawn: Swept, size: tuple[int, int], **clip: Any) -> Node:
    """Measure pictures and recommend one."""
    return w.node(
        "ImagicScoreEdits", size, images=drawn.pictures, original=g.photograph,
        etas=drawn.sweep["etas"], **clip,
    )  # fmt: skip


def sheet_of(w: Workflow, g: Given, drawn: Swept, **more: Any) -> Node:
    """Show pictures side by side."""
    return w.node(
        "ImagicContactSheet", SHEET, images=drawn.pictures, etas=drawn.sweep["etas"],
        original=g.photograph, **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A search for eta."""

    given: Given
    coarse: Swept
    fine: Swept
    score: Node
    """Of the finer range."""
    sheets: tuple[Node, Node]
    saver: Node


def found(w: Workflow) -> Found:
    """The eta found in one run: a coarse range, a recommendation, a finer range around it."""
    g = given(w)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    w.column("Search")
    w.note(
        "**Nothing to choose before you run.** A coarse range of eta is drawn, the score "
        "recommends one, and a finer range around it is drawn and scored.\n\nThe score sees how "
        "much of the photograph is left, not what the sentence says: look at the sheets, and if "
        "another picture is better, take its eta.",
        (320, 210),
    )
    coarse = swept(w, g, tuned["model"], optimized["optimized"], start=0.2, stop=1.2, count=6)
    w.column("Search")
    first = scored(w, g, coarse, (320, 420))
    w.column("Look closer")
    fine = swept(
        w, g, tuned["model"], optimized["optimized"],
        start=first["closer_start"], stop=first["closer_stop"], count=5,
    )  # fmt: skip
    w.column("Look closer")
    second = scored(w, g, fine, (320, 420))
    saver = saved(w, second["recommended_image"], "imagic_find_eta", (320, 380))
    w.column("Choose")
    sheets = sheet_of(w, g, coarse), sheet_of(w, g, fine)
    return Found(g, coarse, fine, second, sheets, saver)


def imagic_find_eta() -> Workflow:
    """The eta found in one run."""
    w = Workflow()
    found(w)
    return w


def imagic_box() -> Workflow:
    """The same as one node: photograph in, edit and sheets out."""
    w = Workflow()
    f = found(w)
    g = f.given
    w.as_box(
        inputs={
            "photograph": [(Node(g.photograph.node), "image")],
            "sentence": [(g.text, "text")],
            "keep out": [(Node(g.negative.node), "text")],
            "checkpoint": [(g.checkpoint, "ckpt_name")],
            "megapixels": [(Node(g.photograph.node), "megapixels")],
            "lowest eta": [(f.coarse.sweep, "start")],
            "highest eta": [(f.coarse.sweep, "stop")],
            "seed": [(f.coarse.sampler, "seed"), (f.fine.sampler, "seed")],
        },
        outputs={
            "picture": f.score["recommended_image"],
            "sheet": f.sheets[0]["sheet"],
            "closer sheet": f.sheets[1]["sheet"],
            "eta": f.score["recommended_eta"],
        },
        outside=[g.loader, f.saver],
        about={
            "category": "Imagic",
            "description": "Edits a photograph by a sentence: learns it, draws a range of eta, "
            "and looks closer around the eta that the score recommends.",
            "aliases": ["edit photo", "edit image by text", "image editing", "imagic"],
        },
    )
    return w


def imagic_eta_sheet() -> Workflow:
    """The paper's figure 7: a range of eta on one noise, before and after fine-tuning."""
    w = Workflow()
    g = given(w)
    optimized, tuned = learned(w, g.checkpoint, g.target, g.latent)

    w.column("A range of eta, as fine-tuned")
    w.note(
        "**Choose the range and how many eta.** Each is one picture for each row; all have the "
        "same noise.\n\nFor several seeds of each eta: *Repeat Latent Batch* between VAE Encode "
        "and KSampler, each seed is then a row.",
        (320, 170),
    )
    tuned_row = swept(w, g, tuned["model"], optimized["optimized"])
    w.column("As loaded, for comparison")
    drawn = sampled(w, g.checkpoint["MODEL"], tuned_row.sweep["conditioning"], g.negative, g.latent)
    plain = decoded(w, drawn, g.checkpoint["VAE"])
    w.column("Choose")
    sheet = sheet_of(w, g, tuned_row, pretrained=plain)
    saved(w, sheet["sheet"], "imagic_eta_sheet", SHEET)

    w.column("Keep")
    w.note(
        "**Imagic Save Edit** writes what was learned to ComfyUI's output folder. *Use a saved "
        "edit again* draws from that file without training.",
        (320, 130),
    )
    w.node(
        "ImagicSaveEdit", (320, 0), model=g.checkpoint["MODEL"], optimized=optimized["optimized"],
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
    drawn = swept(w, g, tuned["model"], optimized["optimized"], start=0.1, stop=1.0, count=10)

    w.column("Measure")
    w.note(
        "Fidelity is measured against your photograph, alignment by **CLIP against your "
        "sentence**. CLIP is one file in two folders: *models/clip_vision* and "
        "*models/text_encoders*. It must be a whole CLIP; the text encoders that come with "
        "checkpoints lack what the score needs.\n\nWithout CLIP: delete both loaders, and "
        "fidelity alone recommends.",
        (320, 260),
    )
    clip_vision, clip = whole_clip(w)
    w.column("Measure")
    score = scored(
        w, g, drawn, (400, 480), clip_vision=clip_vision, clip=clip,
        text=g.text["STRING"],
    )  # fmt: skip
    w.node("PreviewAny", (400, 320), source=score["table"])

    w.column("Choose")
    w.note(
        "The curves **recommend**, you choose: look at the sheet, too. The value goes into *eta* "
        "of Imagic Interpolate Conditioning.",
        (620, 80),
    )
    sheet_of(w, g, drawn)
    saved(w, score["recommended_image"], "imagic_choose_eta", SHEET)
    return w
