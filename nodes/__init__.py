"""The nodes that ComfyUI shows, one a file."""

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .contact_sheet import ImagicContactSheet
from .eta_sweep import ImagicEtaSweep
from .finetune_model import ImagicFinetuneModel
from .finetune_strength import ImagicFinetuneStrength
from .interpolate_conditioning import ImagicInterpolateConditioning
from .load_edit import ImagicLoadEdit
from .optimize_embedding import ImagicOptimizeEmbedding
from .photograph import offer_photograph
from .photograph_noise import ImagicPhotographNoise
from .project_conditioning import ImagicProjectConditioning
from .save_edit import ImagicSaveEdit
from .score_edits import ImagicScoreEdits
from .text2live import ImagicText2Live

NODES: list[type[io.ComfyNode]] = [
    ImagicOptimizeEmbedding,
    ImagicFinetuneModel,
    ImagicInterpolateConditioning,
    ImagicProjectConditioning,
    ImagicPhotographNoise,
    ImagicFinetuneStrength,
    ImagicEtaSweep,
    ImagicContactSheet,
    ImagicSaveEdit,
    ImagicLoadEdit,
    ImagicScoreEdits,
    ImagicText2Live,
]


class ImagicExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return NODES


async def comfy_entrypoint() -> ImagicExtension:
    """ComfyUI calls this once, when it loads the pack."""
    offer_photograph(Path(folder_paths.get_input_directory()))
    return ImagicExtension()
