"""The pictures of a sweep side by side, as in the paper's figure 7."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import schema
from .errors import BadInputError, named

NAME = "Imagic Contact Sheet"
GAP = 6


def sweep_pictures(node: str, socket: str, images: list[Tensor], etas: list[float]) -> list[Tensor]:
    """The pictures of each eta.

    Args:
        node: whom to name in an error.
        socket: whom to name in an error.
        images: IMAGEs [B, H, W, C], one for each eta, or a single one whose batch is the etas.
        etas: as many as pictures, or none.

    Returns:
        One [B, H, W, C] for each eta; B is the number of seeds.

    Raises:
        ValueError: the numbers of pictures differ.
    """
    if len(images) == 1 and len(etas) != 1:
        images = list(images[0].split(1))
    if etas and len(images) != len(etas):
        raise BadInputError(
            f"'{socket}' has {len(images)} pictures, but 'etas' has {len(etas)} values; "
            "connect both to the same Imagic Eta Sweep, the pictures through KSampler and VAE "
            "Decode."
        )
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise BadInputError(
            f"the pictures of '{socket}' have different shapes, {sizes[0]} and "
            f"{sizes[1]}; connect the pictures of one sweep."
        )
    return images


def contact_sheet(
    columns: list[tuple[str, list[Image.Image]]], rows: list[str], tile: int
) -> Image.Image:
    """One picture of all, each column and row with its label.

    Args:
        columns: label, and the pictures from top to bottom; one that has fewer pictures than there
            are rows is centred.
        rows: labels.
        tile: the longer side of each picture in pixels; smaller ones are not enlarged.
    """
    pictures = [[_fitted(p, tile) for p in column] for _, column in columns]
    height = max(p.height for column in pictures for p in column)
    size = max(11, min(28, height // 9))
    font = ImageFont.load_default(size)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = size + 2 * GAP
    left = 2 * GAP + max(round(measure.textlength(row, font)) for row in rows) if any(rows) else GAP
    widths = [
        max(round(measure.textlength(label, font)), *(p.width for p in column))
        for (label, _), column in zip(columns, pictures, strict=True)
    ]
    full = (left + sum(widths) + GAP * len(widths), line + (height + GAP) * len(rows))
    sheet = Image.new("RGB", full, "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(rows):
        middle = line + row * (height + GAP) + height // 2
        draw.text((left - GAP, middle), label, "black", font, anchor="rm")
    x = left
    for (label, _), column, width in zip(columns, pictures, widths, strict=True):
        draw.text((x + width // 2, line // 2), label, "black", font, anchor="mm")
        y = line + (len(rows) - len(column)) * (height + GAP) // 2
        for picture in column:
            sheet.paste(picture, (x + (width - picture.width) // 2, y))
            y += height + GAP
        x += width + GAP
    return sheet


def _fitted(picture: Image.Image, tile: int) -> Image.Image:
    scale = min(1.0, tile / max(picture.size))
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.LANCZOS,
    )


def to_pil(image: Tensor) -> Image.Image:
    """A picture [H, W, C] in 0..1 as RGB."""
    pixels = (image[..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1))


def to_image(picture: Image.Image) -> Tensor:
    """An IMAGE [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255


class ImagicContactSheet(io.ComfyNode):
    """The paper's figure 7."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicContactSheet",
            display_name=NAME,
            category=schema.TOOLS,
            description="Puts the pictures of a sweep side by side in one picture, labelled with "
            "their eta.",
            is_input_list=True,
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
        tuned = sweep_pictures(NAME, "images", images, etas or [])
        labels = labels or [f"{i + 1}" for i in range(len(tuned))]
        seeds = len(tuned[0])
        rows = [f"seed {s + 1}" for s in range(seeds)] if seeds > 1 else [""]
        cells = [[to_pil(p) for p in batch] for batch in tuned]
        if pretrained:
            plain = sweep_pictures(NAME, "pretrained", pretrained, etas or [])
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
        return io.NodeOutput(to_image(contact_sheet(columns, rows, tile)))
