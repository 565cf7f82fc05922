"""Where the miniature's living weights sit in a Stable Diffusion 1.x checkpoint.

UNet: channel_mult [1, 1], num_res_blocks [1, n], 8 heads; transformers at the lower resolution
and in the middle. Autoencoder: TAESD. Everything outside the living channels is zero.
Plain numpy, so that building the checkpoint needs no torch.
"""

from dataclasses import dataclass

import numpy as np

# Stable Diffusion 1.x multiplies latents by this before the UNet sees them.
SCALE_FACTOR = 0.18215
FULL, FULL_TIME, FULL_TEXT, HEADS = 320, 1280, 768, 8
HEAD = FULL // HEADS


@dataclass(frozen=True)
class Shape:
    """Living channels: `fine` (multiple of 20) at 1/8 resolution, `coarse` (of 40) at 1/16.

    `last` trains the second output block at 1/8 resolution; without it that block passes through.
    """

    fine: int = 80
    coarse: int = 120
    time: int = 240
    feed: int = 240
    text: int = 128
    blocks: int = 1
    last: bool = False


def full_shape() -> Shape:
    """Every channel alive: the plain network of this layout."""
    return Shape(FULL, FULL, FULL_TIME, 4 * FULL, FULL_TEXT, 1, True)


Slots = dict[str, tuple[tuple[int, ...], tuple[np.ndarray, ...], str | None]]


def slots(shape: Shape) -> Slots:
    """SD key -> (full shape, living indices along axes 0 and 1, own name or None for fixed).

    A key without a name is the pass-through block: zeros, but for its skip's identity.
    """
    s, out = shape, Slots()
    fine, coarse, time = np.arange(s.fine), np.arange(s.coarse), np.arange(s.time)
    four, text, all_in = np.arange(4), np.arange(s.text), np.arange(FULL)

    def beside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, FULL + b])

    def vector(key: str, name: str | None, full: int, index: np.ndarray) -> None:
        out[key] = ((full,), (index,), name)

    def layer(
        key: str,
        name: str | None,
        full: tuple[int, ...],
        o: np.ndarray,
        i: np.ndarray,
        bias: bool = True,
    ) -> None:
        out[f"{key}.weight"] = (full, (o, i), name and f"{name}.weight")
        if bias:
            vector(f"{key}.bias", name and f"{name}.bias", full[0], o)

    def norm(key: str, name: str | None, full: int, index: np.ndarray) -> None:
        for part in ("weight", "bias"):
            vector(f"{key}.{part}", name and f"{name}.{part}", full, index)

    def res(key: str, name: str | None, i: np.ndarray, o: np.ndarray, two: bool) -> None:
        n_in = 2 * FULL if two else FULL
        norm(f"{key}.in_layers.0", name and f"{name}.norm1", n_in, i)
        layer(f"{key}.in_layers.2", name and f"{name}.conv1", (FULL, n_in, 3, 3), o, i)
        layer(f"{key}.emb_layers.1", name and f"{name}.time", (FULL, FULL_TIME), o, time)
        norm(f"{key}.out_layers.0", name and f"{name}.norm2", FULL, o)
        layer(f"{key}.out_layers.3", name and f"{name}.conv2", (FULL, FULL, 3, 3), o, o)
        if two:
            layer(f"{key}.skip_connection", name and f"{name}.skip", (FULL, n_in, 1, 1), o, i)

    def attention(key: str, name: str, context: np.ndarray, full: int) -> None:
        layer(f"{key}.to_q", f"{name}.q", (FULL, FULL), coarse, coarse, bias=False)
        layer(f"{key}.to_k", f"{name}.k", (FULL, full), coarse, context, bias=False)
        layer(f"{key}.to_v", f"{name}.v", (FULL, full), coarse, context, bias=False)
        layer(f"{key}.to_out.0", f"{name}.out", (FULL, FULL), coarse, coarse)

    def transformer(key: str, name: str) -> None:
        norm(f"{key}.norm", f"{name}.norm", FULL, coarse)
        layer(f"{key}.proj_in", f"{name}.proj_in", (FULL, FULL, 1, 1), coarse, coarse)
        layer(f"{key}.proj_out", f"{name}.proj_out", (FULL, FULL, 1, 1), coarse, coarse)
        block = f"{key}.transformer_blocks.0"
        for n in (1, 2, 3):
            norm(f"{block}.norm{n}", f"{name}.norm{n}", FULL, coarse)
        attention(f"{block}.attn1", f"{name}.attn1", coarse, FULL)
        attention(f"{block}.attn2", f"{name}.attn2", text, FULL_TEXT)
        feed = np.arange(s.feed)
        gated = np.concatenate([feed, 4 * FULL + feed])
        layer(f"{block}.ff.net.0.proj", f"{name}.gate", (8 * FULL, FULL), gated, coarse)
        layer(f"{block}.ff.net.2", f"{name}.back", (FULL, 4 * FULL), coarse, feed)

    layer("time_embed.0", "time1", (FULL_TIME, FULL), time, all_in)
    layer("time_embed.2", "time2", (FULL_TIME, FULL_TIME), time, time)
    layer("input_blocks.0.0", "enter", (FULL, 4, 3, 3), fine, four)
    res("input_blocks.1.0", "fine_in", fine, fine, False)
    layer("input_blocks.2.0.op", "down", (FULL, FULL, 3, 3), coarse, fine)
    for n in range(s.blocks):
        res(f"input_blocks.{3 + n}.0", f"coarse_in.{n}.0", coarse, coarse, False)
        transformer(f"input_blocks.{3 + n}.1", f"coarse_in.{n}.1")
    res("middle_block.0", "middle.0", coarse, coarse, False)
    transformer("middle_block.1", "middle.1")
    res("middle_block.2", "middle.2", coarse, coarse, False)
    for n in range(s.blocks + 1):
        res(f"output_blocks.{n}.0", f"coarse_out.{n}.0", beside(coarse, coarse), coarse, True)
        transformer(f"output_blocks.{n}.1", f"coarse_out.{n}.1")
    layer(f"output_blocks.{s.blocks}.2.conv", "up", (FULL, FULL, 3, 3), fine, coarse)
    res(f"output_blocks.{s.blocks + 1}.0", "fine_out", beside(fine, fine), fine, True)
    res(
        f"output_blocks.{s.blocks + 2}.0",
        "last" if s.last else None,
        beside(fine, fine),
        fine,
        True,
    )
    norm("out.0", "norm", FULL, fine)
    layer("out.2", "leave", (4, FULL, 3, 3), four, fine)
    return out


def fill(full: tuple[int, ...], index: tuple[np.ndarray, ...], values: np.ndarray) -> np.ndarray:
    """A zero array of the full shape with `values` at the living indices of its first axes."""
    out = np.zeros(full, values.dtype)
    if len(index) == 1:
        out[index[0]] = values
    else:
        out[np.ix_(*index)] = values
    return out


def passing(key: str) -> np.ndarray | None:
    """The weight of a pass-through block's skip, [320, 640, 1, 1]; None for its other tensors."""
    if not key.endswith("skip_connection.weight"):
        return None
    return np.eye(FULL, 2 * FULL, dtype=np.float32)[:, :, None, None]


def sd_tensors(shape: Shape, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The full layout (keys as below `model.diffusion_model.`) from the living tensors."""
    out = {}
    for key, (full, index, name) in slots(shape).items():
        if name is not None:
            out[key] = fill(full, index, own[name])
        else:
            fixed = passing(key)
            out[key] = np.zeros(full, np.float32) if fixed is None else fixed
    return out


def own_tensors(shape: Shape, sd: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `sd_tensors`: what a network of this shape keeps of a full layout."""
    return {
        name: sd[key][index[0]] if len(index) == 1 else sd[key][np.ix_(*index)]
        for key, (_, index, name) in slots(shape).items()
        if name is not None
    }


def taesd_tensors(own: dict[str, np.ndarray], latent_std: float) -> dict[str, np.ndarray]:
    """All tensors of a TAESD checkpoint, from the state of the narrow `autoencoder.Autoencoder`.

    `latent_std`, of the encoder's raw output, makes the host's scaled latents of unit variance.
    """
    out: dict[str, np.ndarray] = {}

    def put(key: str, name: str, n_in: int, n_out: int, bias: bool = True) -> None:
        weight, offset = own.get(f"{name}.weight"), own.get(f"{name}.bias")
        out[f"{key}.weight"] = np.zeros((n_out, n_in, 3, 3), np.float32)
        if weight is not None:
            out[f"{key}.weight"][: weight.shape[0], : weight.shape[1]] = weight
        if bias:
            out[f"{key}.bias"] = np.zeros(n_out, np.float32)
            if offset is not None:
                out[f"{key}.bias"][: len(offset)] = offset

    def blocks(side: str, start: int, name: str, count: int) -> None:
        for n in range(count):
            for k in (0, 2, 4):
                put(f"{side}.{start + n}.conv.{k}", f"{name}.{n}.conv.{k}", 64, 64)

    at = 0
    for n, count in enumerate((1, 3, 3, 3)):
        put(f"taesd_encoder.{at}", f"encoder.{n}.change", 64 if n else 3, 64, bias=n == 0)
        blocks("taesd_encoder", at + 1, f"encoder.{n}.blocks", count)
        at += 1 + count
    put(f"taesd_encoder.{at}", "to_latent", 64, 4)

    put("taesd_decoder.1", "from_latent", 4, 64)
    blocks("taesd_decoder", 3, "first", 3)
    at = 6
    for n, count in enumerate((3, 3, 1)):
        put(f"taesd_decoder.{at + 1}", f"decoder.{n}.change", 64, 64, bias=False)
        blocks("taesd_decoder", at + 2, f"decoder.{n}.blocks", count)
        at += 2 + count
    put(f"taesd_decoder.{at}", "to_picture", 64, 3)
    out["vae_scale"] = np.asarray(latent_std * SCALE_FACTOR, np.float32)
    out["vae_shift"] = np.asarray(0, np.float32)
    return out
