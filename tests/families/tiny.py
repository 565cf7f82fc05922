"""Checkpoints of the miniature's architecture with random weights, for tests of mechanics.

Every channel is alive. They draw nothing, but they load, encode, sample, train and decode.
"""

from pathlib import Path

import numpy as np
import torch
from miniature import build, captions, layout
from safetensors.numpy import save_file

from families import kinds

NARROW_UNETS = Path(__file__).with_name("narrow_unets")
"""The pack with which a server loads what ``build_narrow`` writes."""
UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


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
    return _write(out, build.checkpoint(shape, unet, {}, 1.0), rng)


def build_narrow(out: Path, seed: int = 0) -> Path:
    """Write the same with a network a fifth as wide, which trains in a tenth of the time.

    The host loads it under ``kinds.narrow_unets``, a server with ``NARROW_UNETS``. Conditionings
    and latents are the same.
    """
    full = {key: shape for key, (shape, _, _) in layout.slots(layout.full_shape()).items()}
    sketch = {key: torch.empty(shape, device="meta") for key, shape in full.items()}
    narrow = {UNET + k: t.numpy() for k, t in kinds.narrow_weights(sketch, seed).items()}
    clip = {CLIP + k: t.astype(np.float16) for k, t in captions.clip_tensors().items()}
    return _write(out, narrow | clip, np.random.default_rng(seed))


def _write(out: Path, tensors: dict[str, np.ndarray], rng: np.random.Generator) -> Path:
    """Write these and a random autoencoder."""
    empty = layout.taesd_tensors({}, 1.0)
    autoencoder = {
        name: 1.4 * _random(t.shape, name, rng) if t.ndim == 4 else t for name, t in empty.items()
    }
    tensors |= {
        f"first_stage_model.{n}": t.astype(np.float16) if t.ndim else t
        for n, t in autoencoder.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    return out
