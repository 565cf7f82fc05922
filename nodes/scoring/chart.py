"""The paper's figure 9 for one photograph: a curve for each measure, and what is recommended."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from .measures import Measured
from .recommend import Choice, stretched
from .scores import Scores

WIDTH, HEIGHT = 800, 500
LEFT, TOP, RIGHT, FLOOR = 86, 62, 714, 416
BLUE, ORANGE = (31, 95, 170), (200, 90, 10)
GREEN, PALE_GREEN, DARK_GREEN = (60, 120, 60), (228, 240, 226), (40, 100, 40)
GREY, DARK_GREY = (120, 120, 120), (90, 90, 90)
FONT_SIZE, SMALL = 18, 14
MOST_LABELS = 16
PAPER_RANGE = (0.6, 0.8)


def chart(scores: Scores, choice: Choice) -> Image.Image:
    """Draw each measure with an axis of its own, fidelity at the left and alignment at the right.

    Args:
        scores: of two different etas or more.
        choice: which eta is marked, and the range about it.

    Returns:
        RGB, ``WIDTH`` x ``HEIGHT``.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    first, last = scores.etas[0], scores.etas[-1]

    def across(eta: float) -> float:
        place = LEFT + (RIGHT - LEFT) * (eta - first) / (last - first)
        return min(max(place, LEFT), RIGHT)

    _draw_choice(draw, across, scores.etas, choice)
    draw.rectangle((LEFT, TOP, RIGHT, FLOOR), outline=DARK_GREY)
    _draw_etas(draw, across, scores.etas, choice.best)
    if first < PAPER_RANGE[1] and last > PAPER_RANGE[0]:
        _draw_paper_range(draw, across)
    places = list(map(across, scores.etas))
    _draw_curve(draw, places, scores.fidelity, f"fidelity ({scores.fidelity.name})", left=True)
    if scores.alignment:
        label = f"alignment ({scores.alignment.name})"
        _draw_curve(draw, places, scores.alignment, label, left=False)
    return picture


def _draw_choice(
    draw: ImageDraw.ImageDraw,
    across: Callable[[float], float],
    etas: list[float],
    choice: Choice,
) -> None:
    half = (etas[-1] - etas[0]) / (len(etas) - 1) / 2
    band = (across(etas[choice.low] - half), across(etas[choice.high] + half))
    draw.rectangle((band[0], TOP, band[1], FLOOR), fill=PALE_GREEN)
    x = across(etas[choice.best])
    for y in range(TOP, FLOOR, 8):
        draw.line((x, y, x, y + 4), fill=GREEN)
    title = f"recommended: eta {etas[choice.best]:g}"
    if choice.high > choice.low:
        title += f" (range {etas[choice.low]:g} to {etas[choice.high]:g})"
    draw.text((WIDTH // 2, 16), title, DARK_GREEN, _font(FONT_SIZE), anchor="mm")


def _draw_etas(
    draw: ImageDraw.ImageDraw, across: Callable[[float], float], etas: list[float], best: int
) -> None:
    always = (etas[0], etas[-1], etas[best])
    for eta in etas:
        x = across(eta)
        draw.line((x, FLOOR, x, FLOOR + 5), fill=DARK_GREY)
        if len(etas) <= MOST_LABELS or eta in always:
            draw.text((x, FLOOR + 14), f"{eta:g}", "black", _font(SMALL), anchor="mm")
    draw.text((WIDTH // 2, FLOOR + 36), "eta", "black", _font(FONT_SIZE), anchor="mm")


def _draw_paper_range(draw: ImageDraw.ImageDraw, across: Callable[[float], float]) -> None:
    low, high = map(across, PAPER_RANGE)
    y = FLOOR + 58
    draw.line((low, y, high, y), fill=GREY, width=3)
    label = f"usual range in the paper: {PAPER_RANGE[0]:g} to {PAPER_RANGE[1]:g}"
    draw.text((low - 8, y), label, GREY, _font(SMALL), anchor="rm")


def _draw_curve(
    draw: ImageDraw.ImageDraw, places: list[float], curve: Measured, label: str, *, left: bool
) -> None:
    colour = BLUE if left else ORANGE
    bottom, top = FLOOR - 12, TOP + 12
    points = [
        (x, bottom - (bottom - top) * share)
        for x, share in zip(places, stretched(curve.values), strict=True)
    ]
    draw.line(points, fill=colour, width=3)
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    beside, anchor = (LEFT - 8, "rm") if left else (RIGHT + 8, "lm")
    for value, y in ((min(curve.values), bottom), (max(curve.values), top)):
        draw.text((beside, y), f"{value:.3f}", colour, _font(SMALL), anchor=anchor)
    edge, anchor = (LEFT, "lm") if left else (RIGHT, "rm")
    draw.text((edge, TOP - 16), label, colour, _font(FONT_SIZE), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
