"""Progress on the node while it trains: a bar, the picture of the x0 estimate, the loss curve."""

from __future__ import annotations

import math
import time
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
from PIL import Image, ImageDraw
from torch import Tensor

from ..imagic_core.fit import Progress

SIZE = 320
CURVE_HEIGHT = 80
SECONDS_BETWEEN_PICTURES = 0.3


class Reporter:
    """Shows each training step on the node that runs, and stops when the user cancels."""

    def __init__(self, model: Any, steps: int) -> None:
        """Take the MODEL whose latents are shown, and the number of steps."""
        self.bar = comfy.utils.ProgressBar(steps)
        self.losses: list[float] = []
        self.shown = -math.inf
        self.latent_format = model.get_model_object("latent_format")
        self.previewer = latent_preview.get_previewer(model.load_device, self.latent_format)
        factors = self.latent_format.latent_rgb_factors
        if self.previewer is None and factors is not None:
            # Previews of samplers are off by default; a training of minutes should show itself.
            self.previewer = latent_preview.Latent2RGBPreviewer(
                factors,
                self.latent_format.latent_rgb_factors_bias,
                getattr(self.latent_format, "latent_rgb_factors_reshape", None),
            )

    def __call__(self, progress: Progress) -> None:
        """Report one step.

        Raises:
            InterruptProcessingException: the user cancelled.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.losses.append(progress.loss)
        now, preview = time.monotonic(), None
        if now - self.shown >= SECONDS_BETWEEN_PICTURES or progress.step == progress.steps:
            self.shown = now
            preview = ("JPEG", self._picture(progress.estimate), SIZE + CURVE_HEIGHT)
        self.bar.update_absolute(progress.step, progress.steps, preview)

    def _picture(self, estimate: Tensor) -> Image.Image:
        """What [n, C, ...] x0 estimates show, over the curve of the losses."""
        picture = None
        if self.previewer is not None:
            picture = self.previewer.decode_latent_to_preview_image("JPEG", estimate[:1].float())[1]
        return picture_with_curve(picture, self.losses)


def picture_with_curve(picture: Image.Image | None, losses: list[float]) -> Image.Image:
    """The x0 estimate with the loss curve, smoothed, under it."""
    width, height = SIZE, 0
    if picture is not None:
        scale = SIZE / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
    sheet = Image.new("RGB", (width, height + CURVE_HEIGHT), "black")
    if picture is not None:
        sheet.paste(picture.resize((width, height), Image.Resampling.BILINEAR))
    curve = _smoothed(losses)
    low, high = min(curve), max(curve)
    span = (high - low) or 1.0
    points = [
        (
            4 + (width - 8) * i / max(1, len(curve) - 1),
            height + 18 + (CURVE_HEIGHT - 24) * (high - value) / span,
        )
        for i, value in enumerate(curve)
    ]
    draw = ImageDraw.Draw(sheet)
    if len(points) > 1:
        draw.line(points, fill=(90, 200, 250), width=2)
    draw.text((4, height + 3), f"step {len(losses)}  loss {curve[-1]:.4f}", fill="white")
    return sheet


def _smoothed(losses: list[float], keep: float = 0.9) -> list[float]:
    """Running mean: the loss of a single draw of (t, eps) says little."""
    mean, weight, curve = 0.0, 0.0, []
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        curve.append(mean / weight)
    return curve
