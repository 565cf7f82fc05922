"""``python tests/examples/registry_pictures.py`` draws the pack's icon and banner anew.

They are drawings of the miniature's world, not results. Needs pillow and numpy only.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from miniature import world  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

FOLDER = TESTS.parent / "registry"
BACKGROUND, INK, ACCENT = (24, 26, 32), (240, 240, 240), (90, 200, 250)


def drawn(pose: str, size: int) -> Image.Image:
    """One dog on the grass, larger than the miniature sees it."""
    world.SUPERSAMPLE = 16
    who, what = world.identity("heldout", 7), world.Attributes(pose, "grass", "none")
    picture = world._scenery(who, "grass")
    world._dog(world._Pen(picture, who, world.GROUND), who, what)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def print_of(pose: str, size: int, angle: float) -> Image.Image:
    """A dog as a print with a white edge, turned; RGBA."""
    edge = size // 16
    paper = Image.new("RGBA", (size + 2 * edge, size + 4 * edge), "white")
    paper.paste(drawn(pose, size), (edge, edge))
    return paper.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def icon() -> Image.Image:
    """Two prints: the photograph behind, the edit before it. 400 x 400."""
    canvas = Image.new("RGBA", (800, 800), (*BACKGROUND, 255))
    for pose, place, angle in (("standing", (275, 20), -8), ("sitting", (15, 245), 6)):
        one = print_of(pose, 400, angle)
        canvas.alpha_composite(one, place)
    return canvas.convert("RGB").resize((400, 400), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The photograph, the sentence, the edit. 21 : 9, 1680 x 720."""
    canvas = Image.new("RGBA", (1680, 720), (*BACKGROUND, 255))
    canvas.alpha_composite(print_of("standing", 380, 5), (70, 130))
    canvas.alpha_composite(print_of("sitting", 380, -4), (1130, 130))
    draw = ImageDraw.Draw(canvas)
    big, small = ImageFont.load_default(92), ImageFont.load_default(34)
    draw.text((840, 210), "Imagic", INK, big, anchor="mm")
    draw.text((840, 300), "for ComfyUI", INK, small, anchor="mm")
    draw.text((840, 400), "“a photo of a", ACCENT, small, anchor="mm")
    draw.text((840, 446), "sitting dog on the grass”", ACCENT, small, anchor="mm")
    draw.line((640, 515, 1030, 515), ACCENT, 5)
    draw.polygon([(1030, 498), (1060, 515), (1030, 532)], ACCENT)
    return canvas.convert("RGB")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.jpg", quality=88, optimize=True)
