"""Fidelity and alignment over eta, means over the benchmark: the paper's figure 9."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Drawn at twice the size and then made smaller, for smooth lines.
LEFT, TOP, RIGHT, BOTTOM = 200, 192, 1600, 960
FULL = (1800, 1160)
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
    font, small = ImageFont.load_default(34), ImageFont.load_default(26)

    def across(eta: float) -> float:
        inside = min(max(eta, etas[0]), etas[-1])
        return LEFT + (RIGHT - LEFT) * (inside - etas[0]) / (etas[-1] - etas[0])

    low, high = map(across, PAPER_RANGE)
    if low < high:
        draw.rectangle((low, TOP, high, BOTTOM), fill=(232, 240, 230))
        label = "the paper's usual range"
        draw.text(((low + high) / 2, BOTTOM + 144), label, GREY, small, anchor="mm")
        draw.line((low, BOTTOM + 116, high, BOTTOM + 116), fill=GREY, width=6)
    draw.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline=GREY, width=2)
    for eta in etas:
        draw.line((across(eta), BOTTOM, across(eta), BOTTOM + 10), fill=GREY, width=2)
        draw.text((across(eta), BOTTOM + 32), f"{eta:g}", "black", small, anchor="mm")
    draw.text(((LEFT + RIGHT) / 2, BOTTOM + 80), "eta", "black", font, anchor="mm")
    draw.text((LEFT, 44), f"mean of {len(found['edits'])} edits", GREY, small, anchor="lm")

    for measure, colour, x, side in zip(
        found["measures"][:2], (BLUE, ORANGE), (LEFT, RIGHT), ("l", "r"), strict=False
    ):
        values = [row[measure] for rows in lines.values() for row in rows]
        least, most = min(values), max(values)
        if measure != "CLIP score":
            # Fidelity is 1 for the photograph itself: small differences shall look small.
            least, most = min(least, 0.0), 1.0

        def up(value: float, least: float = least, most: float = most) -> float:
            share = (value - least) / (most - least) if most > least else 0.5
            return BOTTOM - 28 - (BOTTOM - TOP - 56) * share

        name = measure if measure == "CLIP score" else f"fidelity ({measure})"
        draw.text((x, TOP - 32), name, colour, font, anchor=f"{side}m")
        for share in range(5):
            value = least + (most - least) * share / 4
            place, anchor = (x - 16, "rm") if side == "l" else (x + 16, "lm")
            draw.text((place, up(value)), f"{value:.3f}", colour, small, anchor=anchor)
        for method, rows in lines.items():
            points = [(across(row["value"]), up(row[measure])) for row in rows]
            _line(draw, points, colour, dashed=method != "imagic")
    for place, (method, name) in enumerate((m, METHODS[m]) for m in lines):
        x, y = RIGHT - 300, 44 + 40 * place
        _line(draw, [(x - 100, y), (x - 16, y)], GREY, dashed=method != "imagic")
        draw.text((x, y), name, "black", small, anchor="lm")
    return sheet.resize((FULL[0] // 2, FULL[1] // 2), Image.Resampling.LANCZOS)


def _line(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Any, dashed: bool
) -> None:
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        pieces = max(1, round(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 24)) if dashed else 1
        for i in range(pieces):
            a, b = i / pieces, (i + (0.55 if dashed else 1)) / pieces
            ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
            draw.line([*ends[0], *ends[1]], fill=colour, width=6)
    for x, y in points:
        fill = "white" if dashed else colour
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=fill, outline=colour, width=3)
