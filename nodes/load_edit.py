"""Using again what was learned and saved."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..imagic_core import edit_file
from ..imagic_core.edit import Edit
from ..imagic_core.edit_file import EditFileError, LaterVersionError
from ..imagic_core.interpolate import common_length
from . import comfy_host, schema
from .checks import checked
from .edit_folder import FOLDER, edit_files
from .errors import BadInputError, named

NAME = "Imagic Load Edit"
NOTHING = "no edit saved yet"
"""Stands in the list where there is none: an empty list would be reported as a missing input."""


def describe(edit: Edit) -> str:
    """What the file tells about itself, for people."""
    about = dict(edit.about)
    losses = about.pop("losses", None)
    about.pop("base_sample", None)
    lines = [f"{key}: {str(value):.300}" for key, value in about.items()]
    for stage, curve in losses.items() if isinstance(losses, dict) else ():
        if isinstance(curve, list) and curve and all(isinstance(x, float) for x in curve):
            lines.append(f"loss of {stage}: {curve[0]:.4f} to {curve[-1]:.4f}, {len(curve)} steps")
    return "\n".join(lines)


class ImagicLoadEdit(io.ComfyNode):
    """Reads an edit file."""

    @classmethod
    @schema.found_by("load embedding", "load lora", "reuse edit", "another sentence")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicLoadEdit",
            display_name=NAME,
            category=schema.TOOLS,
            description="Gives back what Imagic Save Edit saved, without training. Wire another "
            "sentence to edit the same photograph anew.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the edit was learned on."),
                io.Combo.Input(
                    "edit",
                    options=list(edit_files()) or [NOTHING],
                    tooltip="Files of the folder imagic in ComfyUI's output and models folders. "
                    "Press R in the editor to see new ones.",
                ),
                io.Conditioning.Input(
                    "target",
                    optional=True,
                    tooltip="Another sentence for the same photograph. Without it, the one that "
                    "was saved.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The fine-tuned model."),
                io.Conditioning.Output(
                    display_name="optimized", tooltip="The embedding that draws the photograph."
                ),
                io.Conditioning.Output(
                    display_name="target", tooltip="The sentence that is wired, or was saved."
                ),
                io.LoraModel.Output(
                    display_name="lora", tooltip="What was learned, for Imagic Fine-tune Strength."
                ),
                io.String.Output(
                    display_name="info",
                    tooltip="Where the edit comes from, and a warning if the model is another.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, edit: str, **_: Any) -> tuple[int, int] | None:
        """Read again when the file is another one under the same name."""
        file = edit_files().get(edit)
        return (file.stat().st_mtime_ns, file.stat().st_size) if file else None

    @classmethod
    def validate_inputs(cls, edit: str) -> bool:
        """Accept every name: of one that it refuses the host shows no reason; ``execute`` does."""
        return True

    @classmethod
    @named(NAME)
    @checked(but="edit")
    def execute(
        cls, model: comfy_host.Model, edit: str, target: comfy_host.Conditioning | None = None
    ) -> io.NodeOutput:
        """Read and check the file, then apply it."""
        file = edit_files().get(edit)
        if file is None:
            raise BadInputError(missing(edit))
        try:
            with torch.inference_mode(False):
                read = edit_file.read(file)
        except LaterVersionError as error:
            raise BadInputError(f"'edit' {edit!r} {error}. Update ComfyUI-Imagic.") from error
        except (EditFileError, OSError) as error:
            raise BadInputError(
                f"'edit' {edit!r} {error}. Choose a file that Imagic Save Edit wrote, or save it "
                "again."
            ) from error
        try:
            comfy_host.check_lora(comfy_host.weight_shapes(model), read.weights)
            check_width(read, model)
        except BadInputError as error:
            raise BadInputError(
                f"'edit' {edit!r} does not fit 'model': it {error}. It was learned on "
                f"{base_name(read)}; connect that model."
            ) from error
        info = describe(read)
        if target is not None:
            target = as_the_edit_reads(read, model, target)
            if lengths := check_target(read, target):
                info = f"{lengths}\n{info}"
        if read.about.get("base_hash") != comfy_host.base_hash(model):
            warning = (
                f"'model' is not the one that {edit} was learned on, {base_name(read)}: the "
                "photograph may not come back."
            )
            if comfy_host.is_same_quantised(model, read.about.get("base_sample")):
                warning = (
                    f"'model' seems to be the one that {edit} was learned on, {base_name(read)}, "
                    "in a coarser or finer number format: the photograph may come back less well."
                )
            comfy_host.LOGGER.warning("%s: %s", NAME, warning)
            info = f"Warning: {warning}\n{info}"
        return io.NodeOutput(
            comfy_host.apply_lora(model, read.weights),
            comfy_host.to_conditioning(read.optimized),
            comfy_host.to_conditioning(read.target) if target is None else target,
            dict(read.weights),
            info,
        )


def missing(edit: str) -> str:
    """What to do where there is no file of the name ``edit``."""
    there = len(edit_files())
    if not there:
        return (
            f"'edit' has no file to choose: the folder {FOLDER} in ComfyUI's output folder holds "
            "none. First run a workflow with Imagic Save Edit, such as Compare a range of eta; "
            "then press R in the editor and choose the edit."
        )
    return (
        f"'edit' names {edit!r:.200}, which is not among the {there} edit files; press R in the "
        f"editor and choose one of them, or put the file into the folder {FOLDER} of ComfyUI's "
        "output or models folder."
    )


def base_name(edit: Edit) -> str:
    """What the model is called that the edit was learned on."""
    names = [edit.about.get(key) for key in ("base_name", "base")]
    return " of type ".join(f"{name!s:.200}" for name in names if name) or "an unknown model"


def check_width(edit: Edit, model: comfy_host.Model) -> None:
    """Compare the width of the embeddings with what a U-Net takes; others do not tell it.

    Raises:
        BadInputError: they differ.
    """
    takes = comfy_host.context_width(model)
    width = edit.optimized.embedding.tokens.shape[-1]
    if takes is not None and width != takes:
        raise BadInputError(f"has embeddings of width {width}, the model takes {takes}")


def as_the_edit_reads(
    edit: Edit, model: comfy_host.Model, target: comfy_host.Conditioning
) -> comfy_host.Conditioning:
    """The sentence that is wired, its words embedded by the model if the edit's were."""
    if not comfy_host.is_read(edit.optimized):
        return target
    sentence = comfy_host.read_sentence("target", target)
    return comfy_host.to_conditioning(comfy_host.read_by(model, sentence))


def check_target(edit: Edit, target: comfy_host.Conditioning) -> str:
    """Refuse a sentence whose embedding is of another kind than the edit's.

    Returns:
        What is done with one of another number of tokens, else nothing.

    Raises:
        BadInputError: a width differs, or one of them has no pooled vector.
    """
    wired, saved = (
        [tuple(t.shape) for t in sentence.embedding.tensors()]
        for sentence in (comfy_host.read_sentence("target", target), edit.optimized)
    )
    if [(shape[0], shape[-1]) for shape in wired] != [(shape[0], shape[-1]) for shape in saved]:
        raise BadInputError(
            f"'target' has the shape {wired}, but the edit has {saved}; connect a CLIP "
            "Text Encode whose CLIP belongs to this model."
        )
    counts = wired[0][1], saved[0][1]
    if counts[0] == counts[1]:
        return ""
    return (
        f"'target' has {counts[0]} tokens, the edit {counts[1]}: both are continued to "
        f"{common_length(*counts)} where they are mixed."
    )
