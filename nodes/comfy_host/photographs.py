"""The photographs that are wired, as the model wants them, and smaller where that is asked for."""

from __future__ import annotations

import comfy.sample
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...imagic_core.objective import Photographs
from ..errors import BadInputError
from .sockets import Latent, Model

_EVEN = 2
"""Latent places in which networks take their pictures apart, at the least."""


def read_photographs(model: Model, latent: Latent, side: int = 0) -> Photographs:
    """Read the LATENT of photographs for ``model``, scaled as the model wants them.

    Args:
        model: what is to learn them.
        latent: ``samples`` [B, C, ...] and perhaps ``noise_mask``.
        side: in pixels, of a square with as many as larger photographs are made smaller to; 0
            leaves them as they are.

    Raises:
        BadInputError: it is empty, does not fit the model, or its mask excludes everything.
    """
    samples = latent["samples"]
    if samples.is_nested:
        raise BadInputError("'image' packs several streams; connect a VAE Encode node.")
    latent_format = model.get_model_object("latent_format")
    with torch.inference_mode(False):
        samples = samples.clone().float()
        if not torch.isfinite(samples).all():
            raise BadInputError(
                "'image' contains NaN or infinity; encode it with a VAE in float32 (start ComfyUI "
                "with --fp32-vae)."
            )
        if samples.count_nonzero() == 0:
            raise BadInputError(
                f"'image' is an empty latent {tuple(samples.shape)}; connect your photograph: "
                "Load Image, then VAE Encode."
            )
        samples = comfy.sample.fix_empty_latent_channels(model, samples)
        if samples.shape[1] != latent_format.latent_channels:
            raise BadInputError(
                f"'image' has {samples.shape[1]} latent channels, but the model works on "
                f"{latent_format.latent_channels}; encode the photograph with the VAE that "
                "belongs to this model."
            )
        x0 = smaller(model.model.process_latent_in(samples), side / _pixels(latent_format))
        mask = latent.get("noise_mask")
        if mask is None:
            return Photographs(x0)
        mask = comfy.utils.reshape_mask(mask.clone().float(), x0.shape)[:, :1].clamp(0, 1)
    if not (mask.flatten(1).sum(1) > 0).all():
        raise BadInputError(
            "the mask of 'image' is empty, so there is nothing to be faithful to; paint the part "
            "to keep, or disconnect the mask."
        )
    return Photographs(x0, mask)


def _pixels(latent_format: object) -> int:
    """Pixels to a place of the latent, along each side."""
    return getattr(latent_format, "spacial_downscale_ratio", 8)


def smaller(x0: Tensor, side: float) -> Tensor:
    """Latents [B, C, ..., H, W] made smaller to the area of a square of ``side`` places.

    Sides come out even and nearly in proportion. What is smaller already, has no area, or is asked
    for at 0 is left as it is.
    """
    if x0.ndim < 4 or not side:
        return x0
    height, width = x0.shape[-2:]
    factor = side / (height * width) ** 0.5
    if factor >= 1:
        return x0
    size = [max(_EVEN, _EVEN * round(n * factor / _EVEN)) for n in (height, width)]
    frames = x0.movedim(1, -3).flatten(0, -4)
    small = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return small.unflatten(0, (len(x0), *x0.shape[2:-2])).movedim(-3, 1)
