"""A narrow x4 upscaler: the layout of `Stable Diffusion x4 upscaler` on its living channels only.

Its modules have the names of the full layout. Two of the layout's four levels live: 32 x 32 and
16 x 16 for a picture of 128; what is left out is zero there, and hence silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from miniature.upscaler.layout import HEAD, LEVELS, WIDTH, Shape

GROUPS = 32


def _conv(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def waves(t: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of times or levels [B]: [B, 256]."""
    half = torch.arange(WIDTH // 2, device=t.device, dtype=torch.float32) / (WIDTH // 2)
    angle = t.float()[:, None] * torch.exp(-math.log(10000) * half)
    return torch.cat([angle.cos(), angle.sin()], -1)


@dataclass
class Given:
    """What the blocks are told beside the picture: time [B, T] and text [B, 77, text]."""

    time: torch.Tensor
    text: torch.Tensor


class ResBlock(nn.Module):
    """The residual block; `wide` is the full width of its input, 512 for two side by side."""

    def __init__(self, n_in: int, n_out: int, time: int, wide: int = WIDTH) -> None:
        """The block starts as its shortcut."""
        super().__init__()
        norm = nn.GroupNorm(n_in * GROUPS // wide, n_in)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), _conv(n_in, n_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, n_out))
        norm = nn.GroupNorm(n_out * GROUPS // WIDTH, n_out)
        last = _zero(_conv(n_out, n_out))
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Conv2d(n_in, n_out, 1) if wide != WIDTH else nn.Identity()

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        """[B, n_in, H, W] to [B, n_out, H, W]."""
        h = self.in_layers(x) + self.emb_layers(given.time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class LayerNorm(nn.Module):
    """LayerNorm over the full width, of which the channels beyond `living` are zero."""

    def __init__(self, living: int) -> None:
        """Weight one, bias zero."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(living)), nn.Parameter(torch.zeros(living))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., living] to the same shape."""
        living = x.shape[-1]
        wide = F.layer_norm(F.pad(x, (0, WIDTH - living)), (WIDTH,))
        return wide[..., :living] * self.weight + self.bias


class _Attention(nn.Module):
    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(text, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(text), self.to_v(text))
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[0](out)


class _Gated(nn.Module):
    def __init__(self, width: int, feed: int) -> None:
        super().__init__()
        self.net: Any = nn.ModuleDict(
            {"0": nn.ModuleDict({"proj": nn.Linear(width, 2 * feed)}), "2": nn.Linear(feed, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.net["0"]["proj"](x).chunk(2, dim=-1)
        return self.net["2"](value * F.gelu(gate))


class _Reading(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm2, self.norm3 = LayerNorm(shape.coarse), LayerNorm(shape.coarse)
        self.attn2 = _Attention(shape.coarse, shape.text)
        self.ff = _Gated(shape.coarse, shape.feed)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Reads the text; the layout has no self-attention at this level, and its second is dead."""

    def __init__(self, shape: Shape) -> None:
        """The transformer starts as the identity."""
        super().__init__()
        width = shape.coarse
        self.norm = nn.GroupNorm(width * GROUPS // WIDTH, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), _zero(nn.Linear(width, width))
        self.transformer_blocks = nn.ModuleList([_Reading(shape)])

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        """[B, width, H, W] to the same shape."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        h = self.proj_out(self.transformer_blocks[0](h, given.text))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class _Down(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.op = _conv(n_in, n_out, stride=2)

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        return self.op(x)


class _Up(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = _conv(n_in, n_out)

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Levels(nn.Module):
    """The embedding of a noise level as a smooth function, from which training takes the table."""

    def __init__(self, time: int) -> None:
        """Start from nothing."""
        super().__init__()
        self.read = _zero(nn.Linear(WIDTH, time))

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """Levels [B] to [B, time]."""
        return self.read(waves(level))

    def table(self) -> torch.Tensor:
        """[LEVELS, time]."""
        return self(torch.arange(LEVELS))


class Network(nn.Module):
    """Predicts v = sqrt(a) noise - sqrt(1 - a) latent of a noisy latent beside a small picture."""

    def __init__(self, shape: Shape) -> None:
        """Build on the living channels only."""
        super().__init__()
        s = self.shape = shape
        self.time_embed = nn.Sequential(
            nn.Linear(WIDTH, s.time), nn.SiLU(), nn.Linear(s.time, s.time)
        )
        self.label_emb: nn.Module = nn.Embedding(LEVELS, s.time)

        two, block = 2 * WIDTH, nn.ModuleDict
        self.input_blocks = block(
            {
                "0": block({"0": _conv(7, s.fine)}),
                "1": block({"0": ResBlock(s.fine, s.fine, s.time)}),
                "2": block({"0": _Down(s.fine, s.coarse)}),
                "3": block({"0": ResBlock(s.coarse, s.coarse, s.time), "1": Transformer(s)}),
            }
        )
        turn = {"0": ResBlock(s.coarse, s.coarse, s.time, two), "1": Transformer(s)}
        back = {"0": ResBlock(2 * s.coarse, s.coarse, s.time, two), "1": _Up(s.coarse, s.fine)}
        last = {"0": ResBlock(2 * s.fine, s.fine, s.time, two)}
        self.output_blocks = block({"4": block(turn), "5": block(back), "6": block(last)})
        self.out = block(
            {"0": nn.GroupNorm(s.fine * GROUPS // WIDTH, s.fine), "2": _zero(_conv(s.fine, 4))}
        )

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        """[B, 7, H, W], timesteps [B], states [B, 77, text] and noise levels [B] to v."""
        time = self.time_embed(waves(t).to(x.dtype)) + self.label_emb(level)
        given, skips = Given(time, text), []
        number: str
        parts: Any
        for number, parts in self.input_blocks.items():
            for part in parts.values():
                x = part(x, given) if number != "0" else part(x)
            skips.append(x)
        x = x[:, :0]
        for parts in self.output_blocks.values():
            x = torch.cat([x, skips.pop()], 1)
            for part in parts.values():
                x = part(x, given)
        return self.out["2"](F.silu(self.out["0"](x)))
