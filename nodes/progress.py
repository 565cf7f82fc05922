"""Progress on the node while it trains: a bar, what the step has made, the loss curve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image, ImageDraw
from server import PromptServer
from torch import Tensor

from ..imagic_core.fit import Progress
from .memory import memory

SIZE = 320
CURVE_HEIGHT = 80
SECONDS_BETWEEN_PICTURES = 0.3


def say(text: str) -> None:
    """Show a line of text on the node that runs, in place of the one before."""
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id, server.client_id)


Draw = Callable[[Tensor], Image.Image | None]
"""What a step estimates, as a picture; None where that cannot be shown."""


def drawn_latent(model: Any) -> Draw:
    """The first of several x0 [n, C, ...] of a MODEL, as its latents look."""
    latent_format = model.get_model_object("latent_format")
    previewer = latent_preview.get_previewer(model.load_device, latent_format)
    factors = latent_format.latent_rgb_factors
    if previewer is None and factors is not None:
        # Previews of samplers are off by default; a training of minutes should show itself.
        previewer = latent_preview.Latent2RGBPreviewer(
            factors,
            latent_format.latent_rgb_factors_bias,
            getattr(latent_format, "latent_rgb_factors_reshape", None),
        )
    if previewer is None:
        return lambda x0: None
    return lambda x0: previewer.decode_latent_to_preview_image("JPEG", x0[:1].float())[1]


class Reporter:
    """Shows each training step on the node that runs, and stops when the user cancels."""

    def __init__(self, device: torch.device, steps: int, draw: Draw) -> None:
        """Take where it trains, the number of steps, and how their estimates are drawn."""
        self.bar = comfy.utils.ProgressBar(steps)
        self.device, self.draw = device, draw
        self.losses: list[float] = []
        self.first = (0, 0.0)  # step, and when it was done
        self.resumed = ""
        self.shown = -math.inf

    def __call__(self, progress: Progress) -> None:
        """Report one step.

        Raises:
            InterruptProcessingException: the user cancelled.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.losses.append(progress.loss)
        now, preview = time.monotonic(), None
        if not self.first[0]:
            self.first = (progress.step, now)
            if progress.step > 1:
                self.resumed = f"resumed at step {progress.step - 1} of {progress.steps}, now "
        if now - self.shown >= SECONDS_BETWEEN_PICTURES or progress.step == progress.steps:
            self.shown = now
            sheet = picture_with_curve(self.draw(progress.estimate), self.losses, progress.step)
            preview = ("JPEG", sheet, SIZE + CURVE_HEIGHT)
            say(self._line(progress, now))
        self.bar.update_absolute(progress.step, progress.steps, preview)

    def _line(self, progress: Progress, now: float) -> str:
        step, began = self.first
        left = progress.steps - progress.step
        line = f"{self.resumed}step {progress.step} of {progress.steps}, "
        if left and progress.step > step:
            line += f"about {_duration(left * (now - began) / (progress.step - step))} left, "
        return line + memory(self.device)


def _duration(seconds: float) -> str:
    """Such as `40 s`, `3 min` or `1 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def picture_with_curve(picture: Image.Image | None, losses: list[float], step: int) -> Image.Image:
    """What a step has made, with the loss curve of the steps until this one, smoothed, under it."""
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
    draw.text((4, height + 3), f"step {step}  loss {curve[-1]:.4f}", fill="white")
    return sheet


def _smoothed(losses: list[float], keep: float = 0.9) -> list[float]:
    """Running mean: the loss of a single draw of (t, eps) says little."""
    mean, weight, curve = 0.0, 0.0, []
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        curve.append(mean / weight)
    return curve
