"""From an IMAGE to Pillow's pictures and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """A picture [H, W, C] in 0..1, of one colour or more, as RGB."""
    pixels = (image[..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1))


def to_image(picture: Image.Image) -> Tensor:
    """An IMAGE [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255
