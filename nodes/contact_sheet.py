"""The pictures of a sweep side by side, as in the paper's figure 7."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from . import schema
from .checks import checked
from .errors import BadInputError, named
from .pictures import to_image, to_pil
from .sheet import contact_sheet
from .sweep import sweep_pictures

NAME = "Imagic Contact Sheet"


class ImagicContactSheet(io.ComfyNode):
    """The paper's figure 7."""

    @classmethod
    @schema.found_by("xy plot", "compare", "grid", "side by side", "collage", "figure 7")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicContactSheet",
            display_name=NAME,
            category=schema.TOOLS,
            description="Puts the pictures of a sweep side by side in one picture, labelled with "
            "their eta.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The pictures of the sweep, from VAE Decode. Where the latent is a "
                    "batch, each of its seeds is a row.",
                ),
                io.Float.Input(
                    "etas",
                    optional=True,
                    force_input=True,
                    tooltip="From Imagic Eta Sweep. Without it the pictures are numbered.",
                ),
                io.Image.Input(
                    "pretrained",
                    optional=True,
                    tooltip="The same sweep sampled with the model as it was before fine-tuning, "
                    "for a row above.",
                ),
                io.Image.Input(
                    "original", optional=True, tooltip="Your photograph, for a column of its own."
                ),
                io.Int.Input(
                    "tile_size",
                    default=320,
                    min=32,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Longer side of each picture in pixels. None is enlarged.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="For Save Image or Preview Image.")
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        images: list[Tensor],
        etas: list[float] | None = None,
        pretrained: list[Tensor] | None = None,
        original: list[Tensor] | None = None,
        tile_size: list[int] | None = None,
    ) -> io.NodeOutput:
        """Lay the pictures out."""
        labels = [f"eta {eta:g}" for eta in etas or ()]
        tuned = sweep_pictures("images", images, etas or [])
        labels = labels or [f"{i + 1}" for i in range(len(tuned))]
        seeds = len(tuned[0])
        rows = [f"seed {s + 1}" for s in range(seeds)] if seeds > 1 else [""]
        cells = [[to_pil(p) for p in batch] for batch in tuned]
        if pretrained:
            plain = sweep_pictures("pretrained", pretrained, etas or [])
            if len(plain) != len(tuned) or len(plain[0]) != seeds:
                raise BadInputError(
                    f"'pretrained' has {len(plain)} pictures of {len(plain[0])} seeds, but "
                    f"'images' has {len(tuned)} of {seeds}; sample both with the same Imagic Eta "
                    "Sweep and the same latent."
                )
            rows = [
                f"{kind} {row}".strip() for kind in ("pre-trained", "fine-tuned") for row in rows
            ]
            cells = [
                [to_pil(p) for p in batch] + cell for batch, cell in zip(plain, cells, strict=True)
            ]
        columns = list(zip(labels, cells, strict=True))
        if original:
            columns.insert(0, ("input", [to_pil(original[0][0])]))
        tile = tile_size[0] if tile_size else 320
        sheet = to_image(contact_sheet(columns, rows, tile))
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet))
