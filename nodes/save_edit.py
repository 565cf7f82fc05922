"""Keeping what minutes of training learned."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io

from ..imagic_core import edit_file
from ..imagic_core.edit import Edit
from ..imagic_core.edit_file import EditFileError
from . import comfy_host, schema
from .errors import BadInputError, named
from .graph import learned_from

NAME = "Imagic Save Edit"


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
                    default="imagic/edit",
                    tooltip="Place and beginning of the name in ComfyUI's output folder. Imagic "
                    "Load Edit lists what is in its folder imagic.",
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
                    display_name="file", tooltip="The new file, as Imagic Load Edit lists it."
                ),
            ],
        )

    @classmethod
    @named(NAME)
    def execute(
        cls,
        model: comfy_host.Model,
        optimized: comfy_host.Conditioning,
        target: comfy_host.Conditioning,
        lora: comfy_host.Lora,
        filename_prefix: str = "imagic/edit",
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
            "image_hash": image_hash(image),
            "losses": {
                "optimized": (optimized_loss or {}).get("loss", []),
                "model": (model_loss or {}).get("loss", []),
            },
        }
        with torch.inference_mode(False):
            edit = Edit(
                comfy_host.read_sentence("target", target),
                comfy_host.read_sentence("optimized", optimized),
                comfy_host.rounded(lora),
                about,
            )
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}_.safetensors"
        try:
            comfy_host.check_lora(comfy_host.weight_shapes(model), edit.weights)
            edit_file.write(Path(folder) / file, edit)
        except (BadInputError, EditFileError) as error:
            raise BadInputError(
                f"what is wired {error}; connect 'lora' to Imagic Fine-tune Model, and 'target' "
                "and 'optimized' to what the trainings got and gave."
            ) from error
        comfy_host.LOGGER.info("%s: wrote %s", NAME, Path(folder) / file)
        weights = {key: tensor.float() for key, tensor in edit.weights.items()}
        listed = f"{Path(subfolder, file).as_posix()} [output]"
        return io.NodeOutput(
            comfy_host.apply_lora(model, weights), optimized, target, listed, ui={"text": (listed,)}
        )


def image_hash(latent: comfy_host.Latent | None) -> str | None:
    """Hash of the photograph's latent, or None."""
    if latent is None:
        return None
    samples = latent["samples"].detach().float().cpu().contiguous()
    return hashlib.sha256(
        str(tuple(samples.shape)).encode() + samples.numpy().tobytes()
    ).hexdigest()
