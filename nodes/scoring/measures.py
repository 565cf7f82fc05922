"""How near a picture is to the photograph (SSIM or LPIPS) and to the sentence (CLIP score)."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Measured(NamedTuple):
    """What one measure says.

    Attributes:
        name: the measure's.
        values: one for each eta.
    """

    name: str
    values: list[float]


def fidelity(pictures: list[Tensor], original: Tensor) -> Measured:
    """How near each picture is to the photograph: 1 - LPIPS where that can be, else SSIM.

    Args:
        pictures: each [B, H, W, 3] in 0..1.
        original: [1, H, W, 3] in 0..1, of the same size.

    Returns:
        The mean over each batch; 1 is the photograph itself.
    """
    network = lpips_network()
    if network is None:
        return Measured("SSIM", [ssim(p, original.expand_as(p)).mean().item() for p in pictures])

    def prepared(x: Tensor) -> Tensor:
        x = x.movedim(-1, 1).float() * 2 - 1
        return F.interpolate(x, scale_factor=64 / min(x.shape[-2:])) if min(x.shape[2:]) < 64 else x

    with torch.inference_mode(False), torch.no_grad():
        photograph = prepared(original.clone())
        distances = [network(prepared(p.clone()), photograph).mean().item() for p in pictures]
    return Measured("1 - LPIPS", [1 - distance for distance in distances])


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


def clip_score(seen: list[Tensor], sentence: Tensor) -> Measured:
    """How near each picture is to the sentence: the cosine of what CLIP makes of both.

    Args:
        seen: each [B, D], the features of an eta's pictures.
        sentence: [1, D], its features.

    Returns:
        The mean over each batch, in -1..1.
    """
    sentence = F.normalize(sentence, dim=-1)
    return Measured(
        "CLIP score", [(F.normalize(s, dim=-1) @ sentence.T).mean().item() for s in seen]
    )
