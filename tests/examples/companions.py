"""Models beside the checkpoint that some workflows load, made by rule: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from miniature import captions
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
    return _written(file, tensors)


def build_clip(file: Path, seed: int = 0) -> Path:
    """A whole CLIP of ViT-L/14's shape, 0.9 GB: the miniature's text encoder, and an eye.

    The eye sees the mean of a picture's patches through random features; it cannot tell what is
    in a picture, only that two pictures differ.
    """
    rng = np.random.default_rng(seed)
    width, shared, layers = 1024, 768, 24

    def random(*shape: int) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32) / np.float32(np.prod(shape[1:]) ** 0.5)
        return values.astype(np.float16)

    tensors: Tensors = {f"text_model.{k}": v for k, v in captions.clip_tensors().items()}
    tensors["text_projection.weight"] = random(shared, captions.WIDTH)
    tensors["visual_projection.weight"] = random(shared, width)
    eye: Tensors = {
        "embeddings.class_embedding": np.zeros(width, np.float16),
        "embeddings.patch_embedding.weight": random(width, 3, 14, 14),
        "embeddings.position_embedding.weight": np.zeros((257, width), np.float16),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    norms += [f"encoder.layers.{n}.layer_norm{i}" for n in range(layers) for i in (1, 2)]
    for name in norms:
        eye[f"{name}.weight"] = np.ones(width, np.float16)
        eye[f"{name}.bias"] = np.zeros(width, np.float16)
    for n in range(layers):
        at = f"encoder.layers.{n}."
        sizes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, (out, into) in sizes.items():
            weight = np.zeros((out, into), np.float16)
            # Every query and key is zero, so that the first layer takes the mean over the patches.
            if n == 0 and name in ("self_attn.v_proj", "self_attn.out_proj"):
                np.fill_diagonal(weight, 1)
            eye[f"{at}{name}.weight"] = weight
            eye[f"{at}{name}.bias"] = np.zeros(out, np.float16)
    return _written(file, tensors | {f"vision_model.{name}": t for name, t in eye.items()})


def _written(file: Path, tensors: Tensors) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
