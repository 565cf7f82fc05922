"""Checkpoints of the miniature's architecture with random weights, for tests of mechanics.

Every channel is alive. They draw nothing, but they load, encode, sample, train and decode.
"""

from pathlib import Path

import numpy as np
import torch
from miniature import build, layout
from safetensors.numpy import save_file

from families import kinds


def _random(full: tuple[int, ...], key: str, rng: np.random.Generator) -> np.ndarray:
    if len(full) == 1:
        start = 1.0 if key.endswith("weight") else 0.0
        return (start + 0.02 * rng.standard_normal(full)).astype(np.float32)
    return rng.standard_normal(full, np.float32) / np.float32(np.prod(full[1:]) ** 0.5)


def build_tiny(out: Path, seed: int = 0) -> Path:
    """Write the checkpoint to `out` (about 330 MB, a second or two) and return it."""
    rng = np.random.default_rng(seed)
    shape = layout.full_shape()
    unet = {
        name: _random(tuple(len(i) for i in index) + full[len(index) :], key, rng)
        for key, (full, index, name) in layout.slots(shape).items()
        if name is not None
    }
    empty = layout.taesd_tensors({}, 1.0)
    autoencoder = {
        name: 1.4 * _random(t.shape, name, rng) if t.ndim == 4 else t for name, t in empty.items()
    }
    tensors = build.checkpoint(shape, unet, {}, 1.0)
    tensors |= {
        f"first_stage_model.{n}": t.astype(np.float16) for n, t in autoencoder.items() if t.ndim
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    return out


def build_narrow(out: Path, seed: int = 0) -> Path:
    """Write the network alone, a fifth as wide, for ``kinds.small_constants``: a tenth of the work.

    It takes 7 MB, and the same conditionings and latents.
    """
    full = {key: shape for key, (shape, _, _) in layout.slots(layout.full_shape()).items()}
    sketch = {key: torch.empty(shape, device="meta") for key, shape in full.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    kinds.write(sketch, out, seed)
    return out
