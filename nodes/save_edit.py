"""Keeping what minutes of training learned."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from comfy.cli_args import args
from comfy_api.latest import io

from ..imagic_core import edit_file
from ..imagic_core.edit import Edit
from ..imagic_core.edit_file import EditFileError
from . import comfy_host, schema
from .checks import checked
from .edit_folder import DEFAULT_NAME, FOLDER, listed, new_file, place
from .errors import BadInputError, named
from .graph import learned_from

NAME = "Imagic Save Edit"
DEFAULT_PREFIX = f"{FOLDER}/{DEFAULT_NAME}"


# ---- what a file tells about itself ---------------------------------------------------------


def pack_version() -> str:
    """The version that ``pyproject.toml`` states."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    return found[1] if found else ""


# ---- the node -------------------------------------------------------------------------------


class ImagicSaveEdit(io.ComfyNode):
    """Writes an edit file."""

    @classmethod
    @schema.found_by("save embedding", "save lora", "keep training")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicSaveEdit",
            display_name=NAME,
            category=schema.TOOLS,
            description="Saves the embeddings and what the model learned to one file, for Imagic "
            "Load Edit. Its outputs are exactly what that node will give back.",
            is_output_node=True,
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model as loaded, as wired to Imagic Fine-tune Model. It is not "
                    "saved; a hash of it is.",
                ),
                io.Conditioning.Input("optimized", tooltip="From Imagic Optimize Embedding."),
                io.Conditioning.Input(
                    "target", tooltip="Your sentence, as wired to Imagic Optimize Embedding."
                ),
                io.LoraModel.Input("lora", tooltip="From Imagic Fine-tune Model."),
                io.String.Input(
                    "filename_prefix",
                    default=DEFAULT_PREFIX,
                    tooltip="Place and beginning of the name, always in the folder imagic of "
                    "ComfyUI's output folder, which Imagic Load Edit lists. %date:yyyy-MM-dd% and "
                    "%Node.widget% are replaced.",
                ),
                io.Latent.Input(
                    "image",
                    optional=True,
                    tooltip="The photograph, as wired to the trainings. A hash of it is saved.",
                ),
                io.LossMap.Input(
                    "optimized_loss", optional=True, tooltip="From Imagic Optimize Embedding."
                ),
                io.LossMap.Input(
                    "model_loss", optional=True, tooltip="From Imagic Fine-tune Model."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The fine-tuned model, as saved."),
                io.Conditioning.Output(display_name="optimized", tooltip="As saved."),
                io.Conditioning.Output(display_name="target", tooltip="As saved."),
                io.String.Output(
                    display_name="file",
                    tooltip="The new file, as Imagic Load Edit lists it; or why there is none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str = DEFAULT_PREFIX) -> bool | str:
        """Refuse a name that cannot be, before anything is trained."""
        try:
            place(filename_prefix)
        except BadInputError as error:
            return f"{NAME}: 'filename_prefix' {error}; type another, such as {DEFAULT_PREFIX}."
        return True

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        model: comfy_host.Model,
        optimized: comfy_host.Conditioning,
        target: comfy_host.Conditioning,
        lora: comfy_host.Lora,
        filename_prefix: str = DEFAULT_PREFIX,
        image: comfy_host.Latent | None = None,
        optimized_loss: dict[str, list[float]] | None = None,
        model_loss: dict[str, list[float]] | None = None,
    ) -> io.NodeOutput:
        """Write the file, and hand on what was written."""
        if comfy_host.has_lora(model, lora):
            raise BadInputError(
                "'model' is the fine-tuned model, to which 'lora' would be applied twice; connect "
                "the model as loaded, the one that is wired to Imagic Fine-tune Model."
            )
        hidden = cls.hidden
        graph = learned_from(hidden.dynprompt, hidden.unique_id) if hidden else {}
        about = {
            **({} if args.disable_metadata else graph),
            "pack": pack_version(),
            "base": comfy_host.model_kind(model),
            "base_hash": comfy_host.base_hash(model),
            "base_sample": comfy_host.base_sample(model),
            "image_hash": image_hash(image),
            "losses": {
                "optimized": (optimized_loss or {}).get("loss", []),
                "model": (model_loss or {}).get("loss", []),
            },
        }
        with torch.inference_mode(False):
            learned = comfy_host.read_sentence("optimized", optimized)
            edit = Edit(
                comfy_host.as_read(comfy_host.read_sentence("target", target), learned),
                learned,
                comfy_host.rounded(lora),
                about,
            )
        try:
            comfy_host.check_lora(comfy_host.weight_shapes(model), edit.weights)
            told = write(edit, filename_prefix)
        except (BadInputError, EditFileError) as error:
            raise BadInputError(
                f"what is wired {error}; connect 'lora' to Imagic Fine-tune Model, and 'target' "
                "and 'optimized' to what the trainings got and gave."
            ) from error
        weights = {key: tensor.float() for key, tensor in edit.weights.items()}
        tuned = comfy_host.apply_lora(model, weights)
        return io.NodeOutput(tuned, optimized, target, told[0], ui={"text": told})


def write(edit: Edit, prefix: str) -> tuple[str, ...]:
    """Write the edit under a name of its own; what was trained is not lost where that fails.

    Returns:
        The file as Imagic Load Edit lists it, or why there is none; further sentences to show.

    Raises:
        EditFileError: a conditioning has an entry that a file cannot hold.
    """
    warnings = []
    try:
        placed = place(prefix)
    except BadInputError as error:  # it came by a wire, so that only now it is known
        warnings.append(f"'filename_prefix' {error}; saved as {DEFAULT_PREFIX} instead.")
        placed = DEFAULT_PREFIX
    try:
        with new_file(placed) as file:
            edit_file.write(file, edit)
        told = [listed(file), *warnings]
        comfy_host.LOGGER.info("%s: wrote %s", NAME, file)
    except OSError as error:
        warnings = [
            f"Not saved: {error}. The outputs have the edit all the same. Make room, or let "
            "ComfyUI write into its output folder, and run with another 'filename_prefix': "
            "nothing is trained again."
        ]
        told = warnings
    for warning in warnings:
        comfy_host.LOGGER.warning("%s: %s", NAME, warning)
    return tuple(told)


def image_hash(latent: comfy_host.Latent | None) -> str | None:
    """Hash of the photograph's latent, or None."""
    if latent is None:
        return None
    samples = latent["samples"].detach().float().cpu().contiguous()
    return hashlib.sha256(
        str(tuple(samples.shape)).encode() + samples.numpy().tobytes()
    ).hexdigest()
