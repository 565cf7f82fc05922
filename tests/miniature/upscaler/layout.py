"""Where the small upscaler's living weights sit in a checkpoint of Stable Diffusion's x4 upscaler.

The living tensors have the full layout's names. Each fills the first channels of its place, but
where two tensors lie side by side; everything else is zero. Plain numpy, so that building the
checkpoint needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Tensors = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

# The host multiplies the upscaler's latents by this before its network sees them.
SCALE_FACTOR = 0.08333
WIDTH, TIME, TEXT, HEADS = 256, 1024, 1024, 8
HEAD = WIDTH // HEADS
# The host adds noise of levels 0 .. 350 to the small picture; the layout has room for 1000.
LEVELS, ALL_LEVELS = 351, 1000
NO_VARIANCE = -30.0


@dataclass(frozen=True)
class Shape:
    """Living channels: `fine` (of 16) at a quarter of the width, `coarse` (of 32) at an eighth."""

    fine: int = 64
    coarse: int = 96
    time: int = 160
    feed: int = 192
    text: int = 128


def _layer(key: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{key}.weight", shape
    if bias:
        yield f"{key}.bias", shape[:1]


def _norm(key: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    return _layer(key, width)


def _residual(key: str, n_in: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{key}.in_layers.0", n_in)
    yield from _layer(f"{key}.in_layers.2", WIDTH, n_in, 3, 3)
    yield from _layer(f"{key}.emb_layers.1", WIDTH, TIME)
    yield from _norm(f"{key}.out_layers.0", WIDTH)
    yield from _layer(f"{key}.out_layers.3", WIDTH, WIDTH, 3, 3)
    if n_in != WIDTH:
        yield from _layer(f"{key}.skip_connection", WIDTH, n_in, 1, 1)


def _transformer(key: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{key}.norm", WIDTH)
    yield from _layer(f"{key}.proj_in", WIDTH, WIDTH)
    yield from _layer(f"{key}.proj_out", WIDTH, WIDTH)
    block = f"{key}.transformer_blocks.0"
    for n in (1, 2, 3):
        yield from _norm(f"{block}.norm{n}", WIDTH)
    for n in (1, 2):
        yield from _layer(f"{block}.attn{n}.to_q", WIDTH, WIDTH, bias=False)
        for part in ("to_k", "to_v"):
            yield from _layer(f"{block}.attn{n}.{part}", WIDTH, TEXT, bias=False)
        yield from _layer(f"{block}.attn{n}.to_out.0", WIDTH, WIDTH)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * WIDTH, WIDTH)
    yield from _layer(f"{block}.ff.net.2", WIDTH, 4 * WIDTH)


def network_shapes() -> Shapes:
    """Every tensor below `model.diffusion_model.`: four levels of one width, no middle."""

    def all_of_it() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _layer("time_embed.0", TIME, WIDTH)
        yield from _layer("time_embed.2", TIME, TIME)
        yield "label_emb.weight", (ALL_LEVELS, TIME)
        yield from _layer("input_blocks.0.0", WIDTH, 7, 3, 3)
        for n in (1, 3, 5, 7):
            yield from _residual(f"input_blocks.{n}.0", WIDTH)
        for n in (2, 4, 6):
            yield from _layer(f"input_blocks.{n}.0.op", WIDTH, WIDTH, 3, 3)
        for n in range(8):
            yield from _residual(f"output_blocks.{n}.0", 2 * WIDTH)
        for n in (1, 3, 5):
            yield from _layer(f"output_blocks.{n}.1.conv", WIDTH, WIDTH, 3, 3)
        yield from _transformer("input_blocks.3.1")
        yield from _transformer("output_blocks.4.1")
        yield from _norm("out.0", WIDTH)
        yield from _layer("out.2", 4, WIDTH, 3, 3)

    return dict(all_of_it())


def autoencoder_shapes() -> Shapes:
    """Every tensor below `first_stage_model.`, but for the two between encoder and decoder."""
    widths = (128, 256, 512)

    def block(key: str, n_in: int, n_out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _norm(f"{key}.norm1", n_in)
        yield from _layer(f"{key}.conv1", n_out, n_in, 3, 3)
        yield from _norm(f"{key}.norm2", n_out)
        yield from _layer(f"{key}.conv2", n_out, n_out, 3, 3)
        if n_in != n_out:
            yield from _layer(f"{key}.nin_shortcut", n_out, n_in, 1, 1)

    def ends(
        side: str, n_in: int, first: int, last: int, n_out: int
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _layer(f"{side}.conv_in", first, n_in, 3, 3)
        for name in ("block_1", "block_2"):
            yield from block(f"{side}.mid.{name}", 512, 512)
        yield from _norm(f"{side}.mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            yield from _layer(f"{side}.mid.attn_1.{name}", 512, 512, 1, 1)
        yield from _norm(f"{side}.norm_out", last)
        yield from _layer(f"{side}.conv_out", n_out, last, 3, 3)

    def all_of_it() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ends("encoder", 3, 128, 512, 8)
        yield from ends("decoder", 4, 512, 128, 3)
        for level, width in enumerate(widths):
            for n in range(2):
                below = widths[max(level - 1, 0)] if n == 0 else width
                yield from block(f"encoder.down.{level}.block.{n}", below, width)
            for n in range(3):
                above = widths[min(level + 1, 2)] if n == 0 else width
                yield from block(f"decoder.up.{level}.block.{n}", above, width)
            if level < 2:
                yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
            if level > 0:
                yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)

    return dict(all_of_it())


def _places(key: str, axis: int, living: int, full: int) -> np.ndarray:
    """Which channels of the full axis live."""
    first, half = np.arange(living), living // 2
    two = key.startswith("output_blocks.") and full == 2 * WIDTH
    if two and key.startswith("output_blocks.4."):  # nothing comes from below
        return WIDTH + first
    if two or (".ff.net.0.proj." in key and axis == 0):
        return np.where(first < half, first, full // 2 - half + first)
    return first


def _index(key: str, living: tuple[int, ...], full: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    axes = enumerate(zip(living, full, strict=True))
    return np.ix_(*(_places(key, axis, *pair) for axis, pair in axes))


def widen(own: Tensors, shapes: Shapes) -> Tensors:
    """The full layout from the living tensors. Raises KeyError where one has no place in it."""
    out = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    for key, values in own.items():
        out[key][_index(key, values.shape, shapes[key])] = values
    return out


def network_tensors(own: Tensors) -> Tensors:
    """All tensors of the network; the last output block passes on what comes to it."""
    out = widen(own, network_shapes())
    skip = out["output_blocks.7.0.skip_connection.weight"]
    skip[..., 0, 0] = np.eye(*skip.shape[:2])
    return out


def autoencoder_tensors(own: Tensors, latent_std: float) -> Tensors:
    """All tensors of the autoencoder; `latent_std` is that of the encoder's output.

    The host's scaled latents have unit variance then.
    """
    out = widen(own, autoencoder_shapes())
    scale = np.float32(SCALE_FACTOR * latent_std)
    out["quant_conv.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    out["quant_conv.weight"][:4, :4, 0, 0] = np.eye(4) / scale
    out["quant_conv.bias"] = np.array([0.0] * 4 + [NO_VARIANCE] * 4, np.float32)
    out["post_quant_conv.weight"] = (np.eye(4, dtype=np.float32) * scale)[:, :, None, None]
    out["post_quant_conv.bias"] = np.zeros(4, np.float32)
    return out
