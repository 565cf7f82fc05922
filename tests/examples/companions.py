"""A model beside the checkpoint that some workflows load, made by rule: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]


def build_upscaler(file: Path) -> Path:
    """An ESRGAN file that enlarges four times by interpolation, which is what it can do unlearned.

    The residual blocks add nothing, and each convolution after an enlargement smooths it.
    """
    width, blocks, growth = 8, 1, 32
    tensors: Tensors = {}

    def convolution(name: str, into: int, out: int, taps: np.ndarray | None = None) -> None:
        weight = np.zeros((out, into, 3, 3), np.float32)
        for channel in range(3 if taps is not None else 0):
            weight[channel, channel] = taps
        tensors[f"{name}.weight"] = weight
        tensors[f"{name}.bias"] = np.zeros(out, np.float32)

    same = np.zeros((3, 3), np.float32)
    same[1, 1] = 1
    smooth = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
    convolution("model.0", 3, width, same)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(1, 6):
                convolution(
                    f"model.1.sub.{block}.RDB{dense}.conv{number}.0",
                    width + (number - 1) * growth, growth if number < 5 else width,
                )  # fmt: skip
    convolution(f"model.1.sub.{blocks}", width, width)
    for name, taps in (("model.3", smooth), ("model.6", smooth), ("model.8", same)):
        convolution(name, width, width, taps)
    convolution("model.10", width, 3, same)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
