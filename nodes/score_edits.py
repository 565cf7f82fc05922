"""Fidelity and alignment over eta, as in the paper's figure 9."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import comfy_host, schema
from .contact_sheet import sweep_pictures, to_image
from .errors import BadInputError, named

NAME = "Imagic Score Edits"
PAPER_RANGE = (0.6, 0.8)
BLUE, ORANGE = (31, 95, 170), (200, 90, 10)


# ---- fidelity to the photograph ------------------------------------------------------------


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), mean over the picture and its colours.

    Args:
        a: [B, H, W, C] in 0..1.
        b: the same.

    Returns:
        [B], 1 where both are equal.
    """
    a, b = (x.movedim(-1, 1).float() for x in (a, b))
    size = min(11, *a.shape[-2:])
    window = torch.exp(-((torch.arange(size) - (size - 1) / 2) ** 2) / (2 * 1.5**2)).to(a)
    window = window / window.sum()
    kernel = torch.outer(window, window).expand(a.shape[1], 1, size, size)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=x.shape[1])

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.flatten(1).mean(1)


def lpips_network() -> torch.nn.Module | None:
    """LPIPS on AlexNet, if the package ``lpips`` is installed and nothing must be downloaded."""
    if any(importlib.util.find_spec(name) is None for name in ("lpips", "torchvision")):
        return None
    url = importlib.import_module("torchvision.models").AlexNet_Weights.IMAGENET1K_V1.url
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file():
        return None
    return importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()


def fidelity(pictures: list[Tensor], original: Tensor) -> tuple[str, list[float]]:
    """How near each picture is to the photograph.

    Args:
        pictures: each [B, H, W, 3] in 0..1.
        original: [1, H, W, 3], of the same size.

    Returns:
        The name of the measure, and its mean over each batch; 1 is the photograph itself.
    """
    network = lpips_network()
    if network is None:
        return "SSIM", [ssim(p, original.expand_as(p)).mean().item() for p in pictures]

    def prepared(x: Tensor) -> Tensor:
        x = x.movedim(-1, 1).float() * 2 - 1
        return F.interpolate(x, scale_factor=64 / min(x.shape[-2:])) if min(x.shape[2:]) < 64 else x

    with torch.inference_mode(False), torch.no_grad():
        photograph = prepared(original.clone())
        distances = [network(prepared(p.clone()), photograph).mean().item() for p in pictures]
    return "1 - LPIPS", [1 - distance for distance in distances]


# ---- alignment to the text -----------------------------------------------------------------


def clip_scores(pictures: list[Tensor], clip_vision: Any, clip: Any, text: str) -> list[float]:
    """CLIP score: the cosine between each picture and the sentence, mean over each batch.

    Raises:
        ValueError: the two encoders do not have a space in common.
    """
    vision = getattr(clip_vision.model, "visual_projection", None)
    if not isinstance(vision, torch.nn.Module):
        raise BadInputError(
            f"'clip_vision' is a {type(clip_vision.model).__name__} without a projection "
            "into the space of text; connect a Load CLIP Vision with a CLIP model."
        )
    sentence = F.normalize(comfy_host.text_features(clip, text), dim=-1)
    weight: Any = vision.weight
    width, found = weight.shape[0], sentence.shape[-1]
    if found != width:
        raise BadInputError(
            f"'clip' describes a sentence by {found} numbers, 'clip_vision' a picture by "
            f"{width}; connect the text and the vision encoder of one and the same CLIP."
        )
    seen = [clip_vision.encode_image(p)["image_embeds"].float().cpu() for p in pictures]
    return [(F.normalize(s, dim=-1) @ sentence.T).mean().item() for s in seen]


# ---- what follows from both ----------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A recommended eta: its place in the list, the range about it, and the rule."""

    best: int
    low: int
    high: int
    rule: str


def recommend(etas: list[float], faithful: list[float], aligned: list[float] | None) -> Choice:
    """Recommend an eta.

    Args:
        etas: from the lowest to the highest.
        faithful: fidelity at each.
        aligned: alignment at each, or None where it was not measured.
    """
    near = _unit(faithful)
    if aligned is None:
        falls = [before - after for before, after in pairwise(near)]
        best = falls.index(max(falls)) + 1
        good = [abs(value - near[best]) <= 0.2 for value in near]
        rule = (
            "Rule: the first eta after the steepest fall of the fidelity, for there the picture "
            "changes. The text was not looked at: wire clip_vision, clip and text for that."
        )
    else:
        balance = [min(pair) for pair in zip(near, _unit(aligned), strict=True)]
        best = max(range(len(balance)), key=balance.__getitem__)
        good = [value >= 0.8 * balance[best] for value in balance]
        rule = (
            "Rule: both curves are stretched to 0..1; the eta where the lower of the two is "
            "highest. The range is where it keeps four fifths of that."
        )
        if max(range(len(aligned)), key=aligned.__getitem__) == 0:
            rule += (
                f" But no picture fits the text better than the one at eta {etas[0]:g}: raise "
                "the eta or cfg, or train the model for fewer steps."
            )
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    return Choice(best, low, high, rule)


def _unit(values: list[float]) -> list[float]:
    low, span = min(values), max(values) - min(values)
    return [(value - low) / span if span else 1.0 for value in values]


def table(etas: list[float], curves: dict[str, list[float]], choice: Choice) -> str:
    """The scores as text, with the recommendation and its rule."""
    lines = ["eta    " + "  ".join(f"{name:>10}" for name in curves)]
    for i, eta in enumerate(etas):
        cells = "  ".join(f"{values[i]:10.4f}" for values in curves.values())
        lines.append(f"{eta:<5g}  {cells}{'  <- recommended' if i == choice.best else ''}")
    lines += ["", choice.rule, "This only recommends: look at the pictures, and choose yourself."]
    return "\n".join(lines)


def curves_picture(
    etas: list[float], curves: dict[str, list[float]], choice: Choice
) -> Image.Image:
    """The paper's figure 9: a curve for each measure, each with an axis of its own."""
    width, height, left, right, top, bottom = 800, 500, 86, 86, 62, 84
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    first, last = etas[0], etas[-1]
    half = (last - first) / (len(etas) - 1) / 2

    def across(eta: float) -> float:
        place = left + (width - left - right) * (eta - first) / (last - first)
        return min(max(place, left), width - right)

    floor = height - bottom
    band = (across(etas[choice.low] - half), across(etas[choice.high] + half))
    draw.rectangle((band[0], top, band[1], floor), fill=(228, 240, 226))
    x = across(etas[choice.best])
    for y in range(top, floor, 8):
        draw.line((x, y, x, y + 4), fill=(60, 120, 60))
    title = f"recommended: eta {etas[choice.best]:g}"
    if choice.high > choice.low:
        title += f" (range {etas[choice.low]:g} to {etas[choice.high]:g})"
    draw.text((width // 2, 16), title, (40, 100, 40), font, anchor="mm")
    draw.rectangle((left, top, width - right, floor), outline=(90, 90, 90))
    for eta in etas:
        draw.line((across(eta), floor, across(eta), floor + 5), fill=(90, 90, 90))
        if len(etas) <= 16 or eta in (first, last, etas[choice.best]):
            draw.text((across(eta), floor + 14), f"{eta:g}", "black", small, anchor="mm")
    draw.text((width // 2, floor + 36), "eta", "black", font, anchor="mm")
    if first < PAPER_RANGE[1] and last > PAPER_RANGE[0]:
        a, b = map(across, PAPER_RANGE)
        y = floor + 58
        draw.line((a, y, b, y), fill=(120, 120, 120), width=3)
        label = "usual range in the paper: 0.6 to 0.8"
        draw.text((a - 8, y), label, (120, 120, 120), small, anchor="rm")
    for (name, values), colour, at_left in zip(
        curves.items(), (BLUE, ORANGE), (True, False), strict=False
    ):
        low, high = min(values), max(values)
        unit = _unit(values)
        points = [
            (across(eta), floor - 12 - (floor - top - 24) * u)
            for eta, u in zip(etas, unit, strict=True)
        ]
        draw.line(points, fill=colour, width=3)
        for px, py in points:
            draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill=colour)
        x, anchor = (left - 8, "r") if at_left else (width - right + 8, "l")
        for value, y in ((low, floor - 12), (high, top + 12)):
            draw.text((x, y), f"{value:.3f}", colour, small, anchor=f"{anchor}m")
        edge = (left, "l") if at_left else (width - right, "r")
        draw.text((edge[0], top - 16), name, colour, font, anchor=f"{edge[1]}m")
    return picture


# ---- the node ------------------------------------------------------------------------------


class ImagicScoreEdits(io.ComfyNode):
    """The paper's figure 9."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicScoreEdits",
            display_name=NAME,
            category=schema.TOOLS,
            description="Measures how near each picture of a sweep is to your photograph, and, "
            "with CLIP, to your sentence; draws both over eta and recommends one. You choose.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures of the sweep, from VAE Decode."),
                io.Image.Input("original", tooltip="Your photograph, as wired to VAE Encode."),
                io.Float.Input("etas", force_input=True, tooltip="From Imagic Eta Sweep."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="From Load CLIP Vision. Without it the text is not looked at.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP, from Load CLIP.",
                ),
                io.String.Input(
                    "text",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Your sentence, for the alignment.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="curves", tooltip="Both curves over eta."),
                io.String.Output(display_name="table", tooltip="For Preview Any."),
                io.Float.Output(
                    display_name="recommended_eta",
                    tooltip="For eta of Imagic Interpolate Conditioning.",
                ),
                io.Image.Output(
                    display_name="recommended_image", tooltip="The picture of that eta."
                ),
            ],
        )

    @classmethod
    @named(NAME)
    def execute(
        cls,
        images: list[Tensor],
        original: list[Tensor],
        etas: list[float],
        clip_vision: list[Any] | None = None,
        clip: list[Any] | None = None,
        text: list[str] | None = None,
    ) -> io.NodeOutput:
        """Measure, draw, recommend."""
        sentence = text[0].strip() if text else ""
        wired = {"clip_vision": clip_vision, "clip": clip, "text": sentence}
        missing = [name for name, value in wired.items() if not value]
        if missing and (clip_vision or clip):
            raise BadInputError(
                f"'{missing[0]}' is not given, and alignment needs 'clip_vision', 'clip' "
                "and 'text'; give all three, or disconnect both encoders."
            )
        pictures = [p[..., :3] for p in sweep_pictures(NAME, "images", images, etas)]
        if len(set(etas)) < max(3, len(etas)):
            raise BadInputError(
                f"'etas' has {len(set(etas))} different values of {len(etas)}; connect an "
                "Imagic Eta Sweep with a count of at least 3."
            )
        order = sorted(range(len(etas)), key=etas.__getitem__)
        etas, pictures = [etas[i] for i in order], [pictures[i] for i in order]
        name, faithful = fidelity(pictures, matched(original[0], pictures[0]))
        if max(faithful) - min(faithful) < 1e-6:
            raise BadInputError(
                f"all {len(pictures)} pictures of 'images' are equally near to 'original' "
                f"({name} {faithful[0]:.4f}), so there is nothing to choose; connect pictures that "
                "were sampled at different eta."
            )
        curves, aligned = {f"fidelity ({name})": faithful}, None
        if clip_vision and clip:
            aligned = clip_scores(pictures, clip_vision[0], clip[0], sentence)
            curves["alignment (CLIP score)"] = aligned
        choice = recommend(etas, faithful, aligned)
        return io.NodeOutput(
            to_image(curves_picture(etas, curves, choice)),
            table(etas, {key.split("(")[1][:-1]: v for key, v in curves.items()}, choice),
            etas[choice.best],
            pictures[choice.best],
        )


def matched(original: Tensor, picture: Tensor) -> Tensor:
    """The photograph [1, H, W, 3] at the size of the pictures.

    Raises:
        ValueError: its sides are in another proportion, so that it cannot be what was edited.
    """
    (height, width), (h, w) = original.shape[1:3], picture.shape[1:3]
    if abs(width / height * h / w - 1) > 0.1:
        raise BadInputError(
            f"'original' is {width} x {height}, but 'images' are {w} x {h}; connect the "
            "photograph as it goes to VAE Encode, cropped alike."
        )
    photograph = original[:1, ..., :3].movedim(-1, 1).float()
    photograph = F.interpolate(photograph, (h, w), mode="bicubic", antialias=True)
    return photograph.clamp(0, 1).movedim(1, -1)
