"""Fidelity and alignment over eta, means over the benchmark: the paper's figure 9."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

LEFT, TOP, RIGHT, BOTTOM = 100, 96, 800, 480
FULL = (900, 580)
BLUE, ORANGE, GREY = (31, 95, 170), (200, 90, 10), (120, 120, 120)
METHODS = {"imagic": "fine-tuned", "imagic_without_b": "without stage B"}
PAPER_RANGE = (0.6, 0.8)


def picture(found: dict[str, Any]) -> Image.Image | None:
    """Draw the means over eta.

    Args:
        found: what ``scores.means`` returns.

    Returns:
        None where there are fewer than two eta.
    """
    lines = {m: [r for r in found["rows"] if r["method"] == m] for m in METHODS}
    lines = {m: sorted(rows, key=lambda r: r["value"]) for m, rows in lines.items() if rows}
    etas = sorted({row["value"] for rows in lines.values() for row in rows})
    if len(etas) < 2:
        return None
    sheet = Image.new("RGB", FULL, "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)

    def across(eta: float) -> float:
        inside = min(max(eta, etas[0]), etas[-1])
        return LEFT + (RIGHT - LEFT) * (inside - etas[0]) / (etas[-1] - etas[0])

    low, high = map(across, PAPER_RANGE)
    if low < high:
        draw.rectangle((low, TOP, high, BOTTOM), fill=(232, 240, 230))
        label = "the paper's usual range"
        draw.text(((low + high) / 2, BOTTOM + 72), label, GREY, small, anchor="mm")
        draw.line((low, BOTTOM + 58, high, BOTTOM + 58), fill=GREY, width=3)
    draw.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline=GREY)
    for eta in etas:
        draw.line((across(eta), BOTTOM, across(eta), BOTTOM + 5), fill=GREY)
        draw.text((across(eta), BOTTOM + 16), f"{eta:g}", "black", small, anchor="mm")
    draw.text(((LEFT + RIGHT) / 2, BOTTOM + 40), "eta", "black", font, anchor="mm")
    draw.text((LEFT, 22), f"mean of {len(found['edits'])} edits", GREY, small, anchor="lm")

    for measure, colour, x, side in zip(
        found["measures"][:2], (BLUE, ORANGE), (LEFT, RIGHT), ("l", "r"), strict=False
    ):
        values = [row[measure] for rows in lines.values() for row in rows]
        least, most = min(values), max(values)

        def up(value: float, least: float = least, most: float = most) -> float:
            share = (value - least) / (most - least) if most > least else 0.5
            return BOTTOM - 14 - (BOTTOM - TOP - 28) * share

        name = measure if measure == "CLIP score" else f"fidelity ({measure})"
        draw.text((x, TOP - 16), name, colour, font, anchor=f"{side}m")
        for share in range(5):
            value = least + (most - least) * share / 4
            place, anchor = (x - 8, "rm") if side == "l" else (x + 8, "lm")
            draw.text((place, up(value)), f"{value:.3f}", colour, small, anchor=anchor)
        for method, rows in lines.items():
            points = [(across(row["value"]), up(row[measure])) for row in rows]
            _line(draw, points, colour, dashed=method != "imagic")
    for place, (method, name) in enumerate((m, METHODS[m]) for m in lines):
        x, y = RIGHT - 150, 22 + 20 * place
        _line(draw, [(x - 50, y), (x - 8, y)], GREY, dashed=method != "imagic")
        draw.text((x, y), name, "black", small, anchor="lm")
    return sheet


def _line(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Any, dashed: bool
) -> None:
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        pieces = max(1, round(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 12)) if dashed else 1
        for i in range(pieces):
            a, b = i / pieces, (i + (0.55 if dashed else 1)) / pieces
            ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
            draw.line([*ends[0], *ends[1]], fill=colour, width=3)
    for x, y in points:
        fill = "white" if dashed else colour
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=colour)
