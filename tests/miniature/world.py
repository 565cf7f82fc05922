"""A drawn world in which the true result of every edit is known to the pixel.

A picture is 128 x 128 and shows one dog before a landscape. What a caption may say
(`Attributes`) and what it never says (`Identity`) are separate, so drawing one identity with
other attributes is the exact counterfactual of an edit.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
SUPERSAMPLE = 4
GROUND = 113.0

POSES = ("standing", "sitting", "jumping", "lying")
PLACES = ("grass", "beach", "snow", "night")
ACCESSORIES = ("none", "hat", "scarf")
EARS = ("pointed", "floppy", "round")
TAILS = ("thin", "bushy", "short")
MARKINGS = ("plain", "patch", "spots")
# No dog of any split has it: a texture to edit in. Pixels from a stripe's edge to the next one's.
STRIPES, STRIPE = "stripes", 5

# The hue circle is cut into narrow bins that are dealt to the splits in turn: no held-out colour
# can occur in training, yet held-out pictures stay inside the range that training covers.
HUE_BINS = 240
SPLITS = {"heldout": (0,), "tuning": (6,), "train": (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)}
HUE_PERIOD = 12


class Attributes(NamedTuple):
    """What a caption can say."""

    pose: str
    place: str
    accessory: str


@dataclass(frozen=True)
class Identity:
    """What a caption never says. Lengths are in pixels at scale 1, hue in turns [0, 1)."""

    hue: float
    saturation: float
    value: float
    ears: str
    tail: str
    marking: str
    leg: float
    build: float
    x: float
    scale: float
    facing: int
    sun: tuple[float, float]
    clouds: tuple[tuple[float, float, float], ...]


def hue_bin(hue: float) -> int:
    """Number of the hue bin, 0 .. HUE_BINS - 1, for a hue in turns."""
    return int(hue * HUE_BINS) % HUE_BINS


def identity(split: str, index: int) -> Identity:
    """The identity with this number in "train", "tuning" or "heldout" (KeyError on others).

    Splits are disjoint in hue bins, hence in identities.
    """
    residues = SPLITS[split]
    rng = np.random.default_rng([sorted(SPLITS).index(split), index])
    turn = int(rng.integers(HUE_BINS // HUE_PERIOD))
    position = turn * HUE_PERIOD + int(rng.choice(residues))
    # Stay off the bin's edges, so that rounding cannot move a hue into a neighbour's bin.
    hue = (position + rng.uniform(0.05, 0.95)) / HUE_BINS
    clouds = tuple(
        (float(rng.uniform(*span)), float(rng.uniform(10, 30)), float(rng.uniform(0.85, 1.2)))
        for span in ((8, 58), (70, 120))[: int(rng.integers(1, 3))]
    )
    return Identity(
        hue=float(hue),
        saturation=float(rng.uniform(0.5, 0.72)),
        value=float(rng.uniform(0.62, 0.85)),
        ears=str(rng.choice(EARS)),
        tail=str(rng.choice(TAILS)),
        marking=str(rng.choice(MARKINGS)),
        leg=float(rng.uniform(15, 21)),
        build=float(rng.uniform(9.0, 12.0)),
        x=float(rng.uniform(58, 70)),
        scale=float(rng.uniform(0.95, 1.12)),
        facing=int(rng.choice((1, 1, -1))),
        sun=(float(rng.uniform(14, 114)), float(rng.uniform(13, 24))),
        clouds=clouds,
    )


def attributes(rng: np.random.Generator) -> Attributes:
    """Draw attributes; half of the dogs wear nothing."""
    return Attributes(
        str(rng.choice(POSES)),
        str(rng.choice(PLACES)),
        str(rng.choice(ACCESSORIES, p=(0.4, 0.3, 0.3))),
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue, min(1.0, saturation), min(1.0, value))
    return round(255 * r), round(255 * g), round(255 * b)


SUNS = {
    "grass": (255, 222, 89),
    "beach": (255, 190, 74),
    "snow": (255, 244, 206),
    "night": (250, 246, 214),
}
CLOUDS = {
    "grass": (255, 255, 255),
    "beach": (255, 250, 240),
    "snow": (176, 190, 208),
    "night": (58, 66, 112),
}
SHADOWS = {
    "grass": (70, 140, 66),
    "beach": (209, 176, 118),
    "snow": (203, 215, 232),
    "night": (22, 42, 54),
}


def _gradient(top: tuple[int, ...], bottom: tuple[int, ...], height: int) -> Image.Image:
    side = SIZE * SUPERSAMPLE
    ramp = np.linspace(0, 1, height)[:, None] * np.ones((1, side))
    rows = np.array(top) + ramp[..., None] * (np.array(bottom) - np.array(top))
    return Image.fromarray(np.round(rows).astype(np.uint8))


@cache
def _landscape(place: str) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Sky, land and the land's mask, supersampled; the same in every picture of a place."""
    k, side = SUPERSAMPLE, SIZE * SUPERSAMPLE
    skies = {
        "grass": ((98, 178, 240), (206, 235, 252)),
        "beach": ((92, 200, 244), (255, 236, 205)),
        "snow": ((168, 186, 212), (228, 234, 243)),
        "night": ((16, 20, 58), (56, 56, 112)),
    }
    grounds = {
        "grass": ((112, 194, 88), (74, 158, 70)),
        "beach": ((246, 219, 160), (232, 194, 128)),
        "snow": ((250, 252, 255), (222, 232, 245)),
        "night": ((36, 68, 76), (22, 44, 54)),
    }
    horizon = 80
    sky = Image.new("RGB", (side, side))
    sky.paste(_gradient(*skies[place], horizon * k), (0, 0))
    land = Image.new("RGB", (side, side))
    land.paste(_gradient(*grounds[place], (SIZE - horizon) * k), (0, horizon * k))
    mask = Image.new("L", (side, side))
    ink, cut = ImageDraw.Draw(land), ImageDraw.Draw(mask)
    cut.rectangle((0, horizon * k, side, side), fill=255)

    def hill(x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        box = ((x - rx) * k, (y - ry) * k, (x + rx) * k, (y + ry) * k)
        ink.chord(box, 180, 360, fill=fill)
        cut.chord(box, 180, 360, fill=255)

    if place == "grass":
        hill(30, horizon + 1, 52, 18, (138, 205, 130))
        hill(104, horizon + 1, 46, 12, (122, 196, 112))
    elif place == "beach":
        ink.rectangle((0, 68 * k, side, horizon * k - 1), fill=(44, 140, 200))
        ink.rectangle((0, 76 * k, side, horizon * k - 1), fill=(120, 202, 224))
        cut.rectangle((0, 68 * k, side, horizon * k), fill=255)
    elif place == "snow":
        for x, height in ((8, 22), (22, 16), (108, 18), (121, 24)):
            for lift in (0, 0.36):
                tree = [
                    (x - 7 + 5 * lift, horizon + 1 - height * lift),
                    (x, horizon - height),
                    (x + 7 - 5 * lift, horizon + 1 - height * lift),
                ]
                for brush, fill in ((ink, (112, 146, 156)), (cut, 255)):
                    brush.polygon([(a * k, b * k) for a, b in tree], fill=fill)
    else:
        hill(96, horizon + 1, 54, 16, (30, 44, 78))
        hill(16, horizon + 1, 42, 10, (34, 52, 82))
        stars = ImageDraw.Draw(sky)
        for x, y in ((12, 34), (30, 8), (47, 46), (66, 6), (84, 38), (101, 9), (117, 46)):
            stars.ellipse([(v + d) * k for d in (-0.9, 0.9) for v in (x, y)], fill=(226, 228, 250))
    return sky, land, mask


class _Pen:
    """Draws in the dog's own coordinates: feet at the origin, x ahead, y up."""

    def __init__(self, picture: Image.Image, who: Identity, ground: float) -> None:
        self.draw = ImageDraw.Draw(picture)
        self.who, self.ground = who, ground

    def at(self, x: float, y: float) -> tuple[float, float]:
        who = self.who
        return (
            (who.x + who.facing * who.scale * x) * SUPERSAMPLE,
            (self.ground - who.scale * y) * SUPERSAMPLE,
        )

    def polygon(self, points: list[tuple[float, float]], fill: tuple[int, int, int]) -> None:
        self.draw.polygon([self.at(*p) for p in points], fill=fill)

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: tuple[int, int, int],
        turn: float = 0.0,
    ) -> None:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ring = [(rx * math.cos(a), ry * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40)]
        self.polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in ring], fill)

    def limb(
        self,
        p: tuple[float, float],
        q: tuple[float, float],
        r: float,
        r2: float,
        fill: tuple[int, int, int],
    ) -> None:
        """A tapered stroke with round ends, from radius r at p to radius r2 at q."""
        dx, dy = q[0] - p[0], q[1] - p[1]
        n = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / n, dx / n
        self.polygon(
            [
                (p[0] + nx * r, p[1] + ny * r),
                (q[0] + nx * r2, q[1] + ny * r2),
                (q[0] - nx * r2, q[1] - ny * r2),
                (p[0] - nx * r, p[1] - ny * r),
            ],
            fill,
        )
        self.oval(*p, r, r, fill)
        self.oval(*q, r2, r2, fill)


def _light(place: str) -> float:
    return 0.78 if place == "night" else 1.0


def coat_colour(who: Identity, place: str) -> tuple[int, int, int]:
    """The colour of the near side of a dog, 0..255, as its place lights it."""
    return _rgb(who.hue, who.saturation, who.value * _light(place))


def _striped(picture: Image.Image, who: Identity, place: str) -> Image.Image:
    """Cream stripes down whatever has the coat's colour."""
    pixels = np.array(picture)
    column = (np.arange(pixels.shape[1]) / SUPERSAMPLE - who.x) // STRIPE
    over = (pixels == coat_colour(who, place)).all(-1) & (column % 2 == 0)
    pixels[over] = np.array((244, 236, 220)) * _light(place)
    return Image.fromarray(pixels)


def _dog(pen: _Pen, who: Identity, what: Attributes) -> None:
    night, coat = _light(what.place), coat_colour(who, what.place)
    dark = _rgb(who.hue, who.saturation + 0.12, who.value * 0.66 * night)
    light = _rgb(who.hue, who.saturation * 0.4, (who.value * 0.6 + 0.4) * night)
    b, leg, half = who.build, who.leg, 21.0
    paw = 3.9

    if what.pose == "standing":
        hip, chest = (-half, leg + b * 0.8), (half, leg + b * 0.85)
        feet_far = [((-half + 5, leg), (-half + 6, paw)), ((half - 5, leg), (half - 4, paw))]
        feet_near = [((-half - 1, leg), (-half - 2, paw)), ((half + 1, leg), (half + 1, paw))]
    elif what.pose == "sitting":
        hip, chest = (-12.0, b * 0.9), (8.0, leg + b * 1.15)
        feet_far = [((7, leg), (14, paw))]
        feet_near = [((10, leg + 2), (9, paw))]
    elif what.pose == "jumping":
        hip, chest = (-half + 1, leg + 9.0), (half - 2, leg + 23.0)
        feet_far = [
            ((-half + 4, leg + 6), (-half - 7, leg - 8)),
            ((half - 5, leg + 20), (half + 10, leg + 10)),
        ]
        feet_near = [
            ((-half - 2, leg + 8), (-half - 16, leg - 3)),
            ((half, leg + 20), (half + 15, leg + 18)),
        ]
    else:
        hip, chest = (-half, b * 0.95), (half - 3, b * 1.0)
        feet_far = [((half - 6, paw + 1), (half + 12, paw))]
        feet_near = [((half - 8, paw), (half + 8, paw))]
    head = (chest[0] + 11, chest[1] + b + 7)

    root = (hip[0] - b * 0.55, hip[1] + (b * 0.5 if what.pose != "sitting" else -b * 0.2))
    rise = {"standing": 14, "sitting": 6, "jumping": 4, "lying": 2}[what.pose]
    if who.tail == "thin":
        mid = (root[0] - 8, root[1] + rise * 0.35)
        pen.limb(root, mid, 2.6, 2.2, dark)
        pen.limb(mid, (mid[0] - 5, mid[1] + rise), 2.2, 1.8, dark)
    elif who.tail == "bushy":
        pen.limb(root, (root[0] - 10, root[1] + rise * 0.8), 3.2, 6.0, dark)
    else:
        pen.limb(root, (root[0] - 4, root[1] + 3), 4.2, 3.8, dark)

    for p, q in feet_far:
        pen.limb(p, q, 4.4, paw, dark)
    pen.limb(chest, head, b * 0.78, 6.5, coat)
    pen.limb(hip, chest, b * 0.95, b, coat)

    middle = ((hip[0] + chest[0]) / 2, (hip[1] + chest[1]) / 2 + 1)
    tilt = math.degrees(math.atan2(chest[1] - hip[1], chest[0] - hip[0]))
    if who.marking == "patch":
        pen.oval(middle[0] - 1, middle[1], 9, b * 0.62, light, tilt)
    elif who.marking == "spots":
        for t in (-0.62, 0.0, 0.62):
            pen.oval(
                middle[0] + t * (chest[0] - hip[0]) / 2,
                middle[1] + t * (chest[1] - hip[1]) / 2,
                3.8,
                3.8,
                light,
            )

    if what.pose in ("sitting", "lying"):
        x = hip[0] + (1 if what.pose == "sitting" else 3)
        pen.limb((x + 1, paw), (x + 14, paw), paw, paw, dark)
        pen.oval(x, b * 0.9, b * 0.95, b * 0.9, dark)
    for p, q in feet_near:
        pen.limb(p, q, 4.8, paw, coat)

    hx, hy = head
    pen.limb((hx + 3, hy - 2.5), (hx + 13, hy - 4), 6.2, 4.2, coat)
    pen.oval(hx, hy, 10, 9.4, coat)
    pen.oval(hx + 16, hy - 2.4, 2.7, 2.3, (34, 28, 34))
    if who.ears == "pointed":
        pen.polygon([(hx - 9, hy + 4), (hx - 5.5, hy + 19), (hx + 2.5, hy + 7)], dark)
    elif who.ears == "floppy":
        pen.limb((hx - 5, hy + 5), (hx - 9, hy - 7), 3.6, 5.2, dark)
    else:
        pen.oval(hx - 6, hy + 9, 6.2, 6.2, dark)
    pen.oval(hx + 4.2, hy + 2.4, 2.7, 2.9, (255, 255, 255))
    pen.oval(hx + 5.0, hy + 2.2, 1.7, 2.0, (30, 24, 32))

    if what.accessory == "hat":
        red, band = (214, 40, 52), (120, 16, 40)
        pen.polygon(
            [(hx - 6.5, hy + 8), (hx - 7.5, hy + 25), (hx + 8.5, hy + 25), (hx + 7.5, hy + 8)], red
        )
        pen.polygon(
            [(hx - 6.7, hy + 9), (hx - 7.0, hy + 14), (hx + 8.0, hy + 14), (hx + 7.7, hy + 9)], band
        )
        pen.limb((hx - 11, hy + 8), (hx + 12, hy + 8), 2.2, 2.2, red)
    elif what.accessory == "scarf":
        gold, shade = (255, 205, 40), (226, 150, 20)
        nx, ny = hx - 6, hy - 9.5
        pen.limb((nx - 2, ny - 1), (nx - 4, ny - 16), 3.8, 4.4, shade)
        pen.limb((nx - 8, ny + 3), (nx + 10, ny - 3), 4.6, 4.6, gold)


def _scenery(who: Identity, place: str) -> Image.Image:
    k = SUPERSAMPLE
    sky, land, mask = _landscape(place)
    picture = sky.copy()
    draw = ImageDraw.Draw(picture)
    x, y = who.sun
    draw.ellipse([v * k for v in (x - 8, y - 8, x + 8, y + 8)], fill=SUNS[place])
    if place == "night":
        # The bite that makes a crescent has the colour of the sky at that height.
        sky_colour = sky.getpixel((0, int(y * k)))
        draw.ellipse([v * k for v in (x - 4, y - 10, x + 11, y + 5)], fill=sky_colour)
    for cx, cy, size in who.clouds:
        for dx, dy, rx, ry in ((-10, 2, 9, 5), (0, -2, 10, 8), (10, 2, 9, 5)):
            draw.ellipse(
                [
                    k * v
                    for v in (
                        cx + size * (dx - rx),
                        cy + size * (dy - ry),
                        cx + size * (dx + rx),
                        cy + size * (dy + ry),
                    )
                ],
                fill=CLOUDS[place],
            )
    picture.paste(land, (0, 0), mask)
    return picture


def landscape(who: Identity, place: str) -> np.ndarray:
    """The picture without its dog: uint8 [128, 128, 3]."""
    return np.asarray(_scenery(who, place).reduce(SUPERSAMPLE))


def render(who: Identity, what: Attributes) -> np.ndarray:
    """Draw one picture: uint8 [128, 128, 3], the same bytes for the same arguments."""
    k = SUPERSAMPLE
    picture = _scenery(who, what.place)
    reach = (30 if what.pose in ("standing", "lying") else 24) * who.scale
    ImageDraw.Draw(picture).ellipse(
        [v * k for v in (who.x - reach, GROUND - 3, who.x + reach, GROUND + 5)],
        fill=SHADOWS[what.place],
    )
    _dog(_Pen(picture, who, GROUND), who, what)
    if who.marking == STRIPES:
        picture = _striped(picture, who, what.place)
    return np.asarray(picture.reduce(k))


def split_of(who: Identity) -> str:
    """The split that an identity belongs to, from its hue alone."""
    residue = hue_bin(who.hue) % HUE_PERIOD
    return next(split for split, residues in SPLITS.items() if residue in residues)
