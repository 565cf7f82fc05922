"""A small CLIP of the miniature's world: a picture and a sentence as vectors of one space.

It is trained on `WIDTH` channels and expanded into the shapes of OpenAI's ViT-L/14, which are what
ComfyUI knows a CLIP by (`clip_layout`). Names of tensors are those of the full shape.

It knows more words than the diffusion model: the coat's colour and its stripes, which no
caption of that model says, and a dog over a green screen.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miniature import captions, world

WIDTH, HEADS, FEED = 128, 4, 384
LAYERS = {"vision_model": 4, "text_model": 2}
PICTURE, PATCH, LENGTH = 224, 14, 20
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

COLOURS = ("red", "yellow", "green", "turquoise", "blue", "purple")
SCREEN = "screen"
SCREEN_COLOUR = (0, 177, 64)
WORDS = captions.WORDS | {
    "red": 736,
    "yellow": 4481,
    "green": 1901,
    "turquoise": 19899,
    "blue": 1746,
    "purple": 5496,
    "striped": 22192,
    "over": 962,
    "screen": 3750,
}


class Said(NamedTuple):
    """What a sentence says of a picture; None where it says nothing. No word: nothing is worn."""

    pose: str | None
    place: str | None
    accessory: str
    colour: str | None
    striped: bool | None


NOTHING = Said(None, None, "none", None, None)


def colour_of(who: world.Identity) -> str:
    """The word for the coat's hue."""
    return COLOURS[round(who.hue * len(COLOURS)) % len(COLOURS)]


def truth(who: world.Identity, what: world.Attributes) -> Said:
    """All that can be said of a picture."""
    return Said(*what, colour_of(who), who.marking == world.STRIPES)


def fits(said: Said, shown: Said) -> bool:
    """Whether nothing that a sentence says is false of a picture."""
    return all(a is None or a == b for a, b in zip(said, shown, strict=True))


def sentence(said: Said, rng: np.random.Generator | None = None) -> str:
    """It in words: in one fixed wording, or with `rng` in one of many."""
    what = world.Attributes(said.pose or "standing", said.place or "grass", said.accessory)
    if said.place == SCREEN:
        what = what._replace(place="grass")
    text = captions.caption(what, rng, place=said.place not in (None, SCREEN))
    if said.pose is None:
        text = text.replace(" standing", "")
    coat = [said.colour or "", "striped" if said.striped else ""]
    for noun in ("dog", "animal"):
        text = text.replace(noun, " ".join([*filter(None, coat), noun]))
    return text + " over a green screen" * (said.place == SCREEN)


def tokens(text: str) -> list[int]:
    """Token ids [LENGTH]: start, the words it knows, then end tokens."""
    ids = [captions.BOS, *(WORDS[word] for word in text.split())]
    return ids + [captions.EOS] * (LENGTH - len(ids))


VOCABULARY = (captions.BOS, captions.EOS, *sorted(WORDS.values()))


class Layer(nn.Module):
    """A layer of either tower, as the host computes it."""

    def __init__(self) -> None:
        """Weights from torch's global generator, those that write smaller."""
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, FEED), "fc2": nn.Linear(FEED, WIDTH)})
        for last in (self.self_attn["out_proj"], self.mlp["fc2"]):
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.3 * last.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[B, N, WIDTH] to the same shape."""
        h = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[name](h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + self.self_attn["out_proj"](h.transpose(1, 2).flatten(2))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class Encoder(nn.Module):
    """The layers of a tower."""

    def __init__(self, tower: str) -> None:
        """As many as `LAYERS` says."""
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS[tower]))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[B, N, WIDTH] to the same shape."""
        for layer in self.layers:
            x = layer(x, causal)
        return x


class Patches(nn.Module):
    """A picture as tokens."""

    def __init__(self) -> None:
        """Weights from torch's global generator; places begin as sines and cosines."""
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH) * 0.5)
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        side = PICTURE // PATCH
        self.position_embedding = nn.Embedding(side * side + 1, WIDTH)
        with torch.no_grad():
            self.position_embedding.weight[1:].copy_(_places(side))

    def forward(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """[B, 3, PICTURE, PICTURE] to [B, 1 + N, WIDTH], of all patches or those of `kept`."""
        places = self.position_embedding.weight
        x = self.patch_embedding(x).flatten(2).transpose(1, 2) + places[1:]
        if kept is not None:
            x = x[:, kept]
        first = (self.class_embedding + places[0]).expand(len(x), 1, -1)
        return torch.cat([first, x], 1)


class Vision(nn.Module):
    """The tower that looks at pictures."""

    def __init__(self) -> None:
        """Weights from torch's global generator."""
        super().__init__()
        self.embeddings = Patches()
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.encoder = Encoder("vision_model")

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """[B, 3, PICTURE, PICTURE] to [B, WIDTH], from all patches or those of `kept` alone."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(x, kept)), causal=False)
        return self.post_layernorm(x[:, 0])


def _places(side: int) -> Tensor:
    """Sines and cosines of row and column, [side * side, WIDTH]."""
    at = torch.arange(side).float()
    angle = at[:, None] * torch.exp(-math.log(50) * torch.linspace(0, 1, WIDTH // 4))
    one = torch.cat([angle.sin(), angle.cos()], 1)
    both = [one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)]
    return 0.5 * torch.cat(both, -1).flatten(0, 1)


class Words(nn.Module):
    """A sentence as tokens."""

    def __init__(self) -> None:
        """Weights from torch's global generator; a row for each of `VOCABULARY`."""
        super().__init__()
        self.token_embedding = nn.Embedding(len(VOCABULARY), WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        with torch.no_grad():
            self.position_embedding.weight.mul_(0.3)
        self.rows = {token: row for row, token in enumerate(VOCABULARY)}

    def forward(self, ids: list[list[int]]) -> Tensor:
        """Token ids to [B, LENGTH, WIDTH]."""
        rows = torch.tensor([[self.rows[token] for token in line] for line in ids])
        return self.token_embedding(rows) + self.position_embedding.weight


class Text(nn.Module):
    """The tower that reads sentences."""

    def __init__(self) -> None:
        """Weights from torch's global generator."""
        super().__init__()
        self.embeddings = Words()
        self.encoder, self.final_layer_norm = Encoder("text_model"), nn.LayerNorm(WIDTH)

    def forward(self, texts: list[str]) -> Tensor:
        """[B, WIDTH], as the first end token has it."""
        ids = [tokens(text) for text in texts]
        x = self.encoder(self.embeddings(ids), causal=True)
        ends = [line.index(captions.EOS) for line in ids]
        return self.final_layer_norm(x[torch.arange(len(x)), ends])


class Clip(nn.Module):
    """Both towers; the projections lead into a space of WIDTH numbers."""

    def __init__(self) -> None:
        """Weights from torch's global generator."""
        super().__init__()
        self.vision_model, self.text_model = Vision(), Text()
        self.visual_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def see(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to unit vectors [B, WIDTH]."""
        return F.normalize(self.visual_projection(self.vision_model(prepared(x), kept)), dim=-1)

    def read(self, texts: list[str]) -> Tensor:
        """Sentences to unit vectors [B, WIDTH]."""
        return F.normalize(self.text_projection(self.text_model(texts)), dim=-1)


def prepared(x: Tensor) -> Tensor:
    """As the host does it, but for the rounding to 8 bits: [B, 3, PICTURE, PICTURE]."""
    if x.shape[-1] != PICTURE:
        x = F.interpolate(x, (PICTURE, PICTURE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1).to(x) for v in (MEAN, STD))
    return (x - mean) / std
