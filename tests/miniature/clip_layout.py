"""The miniature's CLIP in the shapes of ViT-L/14, and its vision tower alone in the host's class.

    python tests/miniature/clip_layout.py --out miniature_clip.safetensors

A LayerNorm is blind to copies: in the full shape each channel stands several times over, every copy
is written and only the first is read. The trained layers are the last; those before pass on what
they get.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniature import asset, captions  # noqa: E402
from miniature.build import command_line  # noqa: E402
from miniature.clip import (  # noqa: E402
    FEED,
    HEADS,
    LAYERS,
    LENGTH,
    PATCH,
    PICTURE,
    VOCABULARY,
    WIDTH,
    Clip,
)

FILE = asset.FOLDER / "clip.safetensors"
SPACE = 768
PROJECTIONS = {"vision_model": "visual_projection.weight", "text_model": "text_projection.weight"}
Tensors = dict[str, np.ndarray]


class Full(NamedTuple):
    """A tower's shape in ViT-L/14."""

    width: int
    heads: int
    layers: int


FULL = {"vision_model": Full(1024, 16, 24), "text_model": Full(768, 12, 12)}


def shipped() -> Tensors:
    """The trained tensors, float32."""
    return {name: t.astype(np.float32) for name, t in load_file(FILE).items()}


def load() -> Clip:
    """The shipped CLIP by itself, which needs no ComfyUI."""
    model = Clip()
    model.load_state_dict({name: torch.from_numpy(t) for name, t in shipped().items()})
    return model.eval()


def tower(own: Tensors, name: str) -> Tensors:
    """All tensors of one tower with its projection in the full shape, half precision."""
    full, layer = FULL[name], f"{name}.encoder.layers"
    out = {k: _widened(k, t, full) for k, t in own.items() if k.startswith(name)}
    trained = {k: out.pop(k) for k in list(out) if k.startswith(layer)}
    passing = full.layers - LAYERS[name]
    for key, value in trained.items():
        n, rest = key.removeprefix(f"{layer}.").split(".", 1)
        out[f"{layer}.{passing + int(n)}.{rest}"] = value
        if n == "0":
            out |= {f"{layer}.{i}.{rest}": np.zeros_like(value) for i in range(passing)}
    # All numbers of the space are in use, as in any CLIP; lengths and angles stay.
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((SPACE, WIDTH)))[0]
    copies = full.width // WIDTH
    out[PROJECTIONS[name]] = turn @ np.tile(own[PROJECTIONS[name]], copies) / copies
    return {key: np.ascontiguousarray(t.astype(np.float16)) for key, t in out.items()}


def _widened(key: str, value: np.ndarray, full: Full) -> np.ndarray:
    copies, last = full.width // WIDTH, key.split(".")[-2]
    if last == "token_embedding":
        table = np.zeros((captions.EOS + 1, full.width), np.float32)
        table[list(VOCABULARY)] = np.tile(value, copies)
        return table
    if last == "position_embedding":
        places = captions.LENGTH if len(value) == LENGTH else len(value)
        return _placed(np.tile(value, copies), (places, full.width))
    # Each head's numbers stand at the beginning of a full head.
    head, full_head = WIDTH // HEADS, full.width // full.heads
    heads = (np.arange(HEADS)[:, None] * full_head + np.arange(head)).ravel()
    if last in ("q_proj", "k_proj", "v_proj"):
        # Attention divides by the root of the head's width, which is another one here.
        value = value * (full_head / head) ** 0.5 if last == "q_proj" else value
        return _placed(value, (full.width, full.width), heads)
    if last == "fc1":
        return _placed(value, (4 * full.width, full.width))
    written = np.concatenate([value] * copies)
    if key.endswith("out_proj.weight"):
        return _placed(written.T, (full.width, full.width), heads).T
    if key.endswith("fc2.weight"):
        return _placed(written.T, (4 * full.width, full.width)).T
    return written


def _placed(
    value: np.ndarray, shape: tuple[int, int], rows: np.ndarray | None = None
) -> np.ndarray:
    """Zeros of a shape, of its first axis alone for a vector, but for the value at ``rows``."""
    out = np.zeros(shape[: value.ndim], np.float32)
    at = np.arange(len(value)) if rows is None else rows
    out[(at, *(slice(n) for n in value.shape[1:]))] = value
    return out


def build(out: Path, own: Tensors | None = None) -> Path:
    """Write one whole CLIP file, which both of ComfyUI's loaders read."""
    own = shipped() if own is None else own
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tower(own, "vision_model") | tower(own, "text_model"), out)
    return out


def in_host(own: Tensors | None = None) -> tuple[Any, Any]:
    """The host's CLIP_VISION without the copies, and its CLIP: the same function, in memory.

    Looking at a picture takes a small part of what the full shape takes.
    """
    import comfy.clip_vision
    import comfy.sd

    own = shipped() if own is None else own
    config = {
        "hidden_size": WIDTH,
        "intermediate_size": FEED,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS["vision_model"],
        "hidden_act": "quick_gelu",
        "patch_size": PATCH,
        "image_size": PICTURE,
        "num_channels": 3,
        "projection_dim": SPACE,
        "model_type": "clip_vision_model",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "clip.json")
        file.write_text(json.dumps(config))
        vision = comfy.clip_vision.ClipVisionModel(str(file))
    state = {k: t for k, t in own.items() if k.startswith("vision_model")}
    wide = tower(own, "vision_model")[PROJECTIONS["vision_model"]].astype(np.float32)
    state[PROJECTIONS["vision_model"]] = wide.reshape(SPACE, -1, WIDTH).sum(1)
    with torch.inference_mode():
        missing, unknown = vision.load_sd({k: torch.from_numpy(t) for k, t in state.items()})
        assert not missing and not unknown, (missing, unknown)
        text = {k: torch.from_numpy(t) for k, t in tower(own, "text_model").items()}
        kind = comfy.sd.CLIPType.STABLE_DIFFUSION
        return vision, comfy.sd.load_text_encoder_state_dicts([text], clip_type=kind)


if __name__ == "__main__":
    command_line(__doc__, build)
