"""Pictures under a sentence, each with its label: of the demo, and beside the examples.

The pack's own sheet is that of a sweep, in as few rows as it has seeds; this one has any pictures,
four in a row, so that it stays readable in a browser.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE = 320
LARGEST, WIDEST = 60_000, 960


def contact_sheet(tiles: list[tuple[str, Image.Image]], sentence: str) -> Image.Image:
    """Put labelled pictures side by side, four in a row, under the sentence."""
    font = ImageFont.load_default(18)
    columns = min(4, len(tiles))
    shape = tiles[0][1]
    height = round(TILE * shape.height / shape.width)
    rows = math.ceil(len(tiles) / columns)
    step_x, step_y, top = TILE + 12, height + 40, 44
    sheet = Image.new("RGB", (12 + columns * step_x, top + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 12), f"“{sentence}”", fill="black", font=font)
    for index, (label, picture) in enumerate(tiles):
        x, y = 12 + index % columns * step_x, top + index // columns * step_y
        sheet.paste(ImageOps.fit(picture, (TILE, height), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + height + 6), label, fill="black", font=font)
    return sheet


def save_small(picture: Image.Image, file: Path) -> None:
    """Write a JPEG of at most ``LARGEST`` bytes and ``WIDEST`` pixels."""
    picture.thumbnail((WIDEST, WIDEST))
    for quality in range(90, 30, -5):
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=quality, optimize=True)
        if encoded.tell() <= LARGEST:
            break
    file.write_bytes(encoded.getvalue())
