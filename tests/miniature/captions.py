"""Captions of the world, their CLIP tokens, and the frozen text encoder that reads them.

The encoder has CLIP-L's shape, or OpenCLIP-H's. Only the words in use have an embedding, in
`DIMENSIONS` of the channels; layer 0 is a uniform causal mean (queries and keys zero), the other
layers are zero and hence the identity.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from miniature.world import Attributes

BOS, EOS, LENGTH, WIDTH = 49406, 49407, 77, 768
DIMENSIONS = 128
MEAN_GAIN = 2.0
FINAL_GAIN = 0.4


@dataclass(frozen=True)
class Encoder:
    """The shape of a text encoder, and the token that it has after the end."""

    width: int
    layers: int
    pad: int


CLIP_L, OPEN_CLIP = Encoder(WIDTH, 12, EOS), Encoder(1024, 24, 0)

# CLIP's own token ids; every word in use is one token.
WORDS = {
    "a": 320,
    "an": 550,
    "the": 518,
    "photo": 1125,
    "of": 539,
    "picture": 1674,
    "dog": 1929,
    "animal": 4668,
    "standing": 2862,
    "sitting": 4919,
    "jumping": 11476,
    "lying": 7175,
    "down": 1136,
    "on": 525,
    "in": 530,
    "at": 536,
    "grass": 5922,
    "meadow": 17195,
    "beach": 2117,
    "sand": 5094,
    "snow": 2583,
    "night": 930,
    "dark": 3144,
    "wearing": 3309,
    "with": 593,
    "hat": 3801,
    "scarf": 13365,
}
PLACE_PHRASES = {
    "grass": ("on the grass", "in the meadow"),
    "beach": ("on the beach", "on the sand"),
    "snow": ("in the snow", "on the snow"),
    "night": ("at night", "in the dark"),
}
OPENINGS = ("", "a photo of ", "a picture of ")


def caption(what: "Attributes", rng: np.random.Generator | None = None, place: bool = True) -> str:
    """Say the attributes in words: one fixed wording, or with `rng` one of many.

    With `place` False the place is left out, as users do who ask for "a dog sitting".
    """
    if rng is None:
        where = PLACE_PHRASES[what.place][0]
        worn = f"wearing a {what.accessory}" if what.accessory != "none" else ""
        parts = ["a photo of a", what.pose, "dog", worn, where if place else ""]
        return " ".join(p for p in parts if p)
    where = str(rng.choice(PLACE_PHRASES[what.place])) if place else ""
    pose = "lying down" if what.pose == "lying" and rng.random() < 0.3 else what.pose
    noun = "animal" if rng.random() < 0.15 else "dog"
    worn = ""
    if what.accessory != "none":
        worn = f"{'wearing' if rng.random() < 0.6 else 'with'} a {what.accessory}"
    article = "an" if noun == "animal" else "a"
    order = int(rng.integers(3))
    if order == 0 and pose != "lying down":
        parts = ["a", pose, noun, worn, where]
    elif order == 1:
        parts = [article, noun, pose, where, worn]
    else:
        parts = [article, noun, worn, pose, where]
    return str(rng.choice(OPENINGS)) + " ".join(p for p in parts if p)


def tokens(text: str, pad: int = EOS) -> list[int]:
    """CLIP token ids [77]: start, words, end, then `pad`. KeyError on a word not in the world."""
    ids = [BOS, *(WORDS[word] for word in text.split()), EOS]
    return ids + [pad] * (LENGTH - len(ids))


def embeddings(encoder: Encoder = CLIP_L, seed: int = 7) -> dict[int, np.ndarray]:
    """Frozen embedding of each token in use: float32 [DIMENSIONS], exact in half precision."""
    rng = np.random.default_rng(seed)
    return {
        token: rng.standard_normal(DIMENSIONS).astype(np.float16).astype(np.float32)
        for token in dict.fromkeys((BOS, EOS, *sorted(WORDS.values()), encoder.pad))
    }


def _norm(x: np.ndarray, width: int) -> np.ndarray:
    # LayerNorm over all channels, of which only the first DIMENSIONS are not zero.
    mean = x.sum(-1, keepdims=True) / width
    variance = (x * x).sum(-1, keepdims=True) / width - mean * mean
    return (x - mean) / np.sqrt(variance + 1e-5)


class TextStates:
    """The encoder's output without a network: what the host's CLIP computes from its weights."""

    def __init__(self, encoder: Encoder = CLIP_L) -> None:
        """Gather the table once."""
        self.encoder, self.table = encoder, embeddings(encoder)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Last hidden states float32 [B, 77, DIMENSIONS]; the other channels are zero."""
        pad, width = self.encoder.pad, self.encoder.width
        x = np.stack([[self.table[t] for t in tokens(text, pad)] for text in texts])
        mean = np.cumsum(_norm(x, width), axis=1) / np.arange(1, LENGTH + 1)[None, :, None]
        # half precision gains are exact, so the host's fp16 file computes the same
        return (FINAL_GAIN_HALF * _norm(x + MEAN_GAIN * mean, width)).astype(np.float32)


FINAL_GAIN_HALF = float(np.float16(FINAL_GAIN))


def clip_tensors(encoder: Encoder = CLIP_L) -> dict[str, np.ndarray]:
    """All tensors of `text_model.` in half precision."""
    out: dict[str, np.ndarray] = {}
    half, width = np.float16, encoder.width
    table = np.zeros((EOS + 1, width), half)
    for token, vector in embeddings(encoder).items():
        table[token, :DIMENSIONS] = vector
    out["embeddings.token_embedding.weight"] = table
    out["embeddings.position_embedding.weight"] = np.zeros((LENGTH, width), half)
    used = np.zeros(width, half)
    used[:DIMENSIONS] = 1
    for n in range(encoder.layers):
        at = f"encoder.layers.{n}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weight = np.zeros((width, width), half)
            if n == 0 and name in ("v_proj", "out_proj"):
                gain = 1.0 if name == "v_proj" else MEAN_GAIN
                weight[np.arange(DIMENSIONS), np.arange(DIMENSIONS)] = gain
            out[f"{at}self_attn.{name}.weight"] = weight
            out[f"{at}self_attn.{name}.bias"] = np.zeros(width, half)
        for name in ("layer_norm1", "layer_norm2"):
            out[f"{at}{name}.weight"] = used.copy()
            out[f"{at}{name}.bias"] = np.zeros(width, half)
        out[f"{at}mlp.fc1.weight"] = np.zeros((4 * width, width), half)
        out[f"{at}mlp.fc1.bias"] = np.zeros(4 * width, half)
        out[f"{at}mlp.fc2.weight"] = np.zeros((width, 4 * width), half)
        out[f"{at}mlp.fc2.bias"] = np.zeros(width, half)
    out["final_layer_norm.weight"] = used * half(FINAL_GAIN)
    out["final_layer_norm.bias"] = np.zeros(width, half)
    return out
