"""Pictures side by side in one, as in the paper's figure 7."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

GAP = 6


def contact_sheet(
    columns: list[tuple[str, list[Image.Image]]], rows: list[str], tile: int
) -> Image.Image:
    """One picture of all, each column and row with its label.

    Args:
        columns: label, and the pictures from top to bottom; one that has fewer pictures than there
            are rows is centred.
        rows: labels.
        tile: the longer side of each picture in pixels; smaller ones are not enlarged.

    Returns:
        RGB, as large as all of it takes.
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
