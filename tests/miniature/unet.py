"""A Stable Diffusion 1.x UNet of which only some channels live.

ComfyUI knows SD1.x by 320 channels and a 768-wide text. A world this small is learnt many times
faster by fewer channels, and dead ones cost nothing to store: a group of zero channels stays zero
through group norm, SiLU and convolution. So training runs on the living channels alone and
`layout.sd_tensors` writes them into the full layout.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from miniature.layout import FULL, HEAD, Shape


def _conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=kernel // 2)


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class LayerNorm(nn.Module):
    """LayerNorm over the full width, of which the channels beyond `width` are zero."""

    def __init__(self, width: int) -> None:
        """Weight one, bias zero."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same shape."""
        width = x.shape[-1]
        if width == FULL:
            return F.layer_norm(x, (FULL,), self.weight, self.bias)
        wide = F.layer_norm(F.pad(x, (0, FULL - width)), (FULL,))
        return wide[..., :width] * self.weight + self.bias


class ResBlock(nn.Module):
    """SD's residual block; its input may be two tensors side by side."""

    def __init__(self, n_in: int, n_skip: int, n_out: int, time: int) -> None:
        """`n_skip` channels come from the encoder's side, 0 for none."""
        super().__init__()
        group = 20 if n_skip else 10
        self.norm1 = nn.GroupNorm((n_in + n_skip) // group, n_in + n_skip)
        self.conv1 = _conv(n_in + n_skip, n_out)
        self.time = nn.Linear(time, n_out)
        self.norm2 = nn.GroupNorm(n_out // 10, n_out)
        self.conv2 = _zero(_conv(n_out, n_out))
        self.skip = _conv(n_in + n_skip, n_out, 1) if n_skip else None

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[B, n_in + n_skip, H, W] and SiLU'd time [B, T] to [B, n_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.skip is None else self.skip(x)) + h


class Attention(nn.Module):
    """Multi-head attention with 40 channels a head."""

    def __init__(self, width: int, context: int) -> None:
        """Keys and values are read from `context` channels."""
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context, width, bias=False)
        self.v = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """[B, N, width], [B, M, context] to [B, N, width]."""
        q, k, v = (
            t.unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for t in (self.q(x), self.k(context), self.v(context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """SD's spatial transformer of depth one."""

    def __init__(self, width: int, feed: int, text: int) -> None:
        """`feed` is the width inside the gated feed-forward."""
        super().__init__()
        self.norm = nn.GroupNorm(width // 10, width, eps=1e-6)
        self.proj_in = _conv(width, width, 1)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width), Attention(width, text)
        self.gate, self.back = nn.Linear(width, 2 * feed), nn.Linear(feed, width)
        self.proj_out = _zero(_conv(width, width, 1))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """[B, width, H, W] and [B, 77, text] to [B, width, H, W]."""
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        n = self.norm1(h)
        h = h + self.attn1(n, n)
        h = h + self.attn2(self.norm2(h), text)
        value, gate = self.gate(self.norm3(h)).chunk(2, dim=-1)
        h = h + self.back(value * F.gelu(gate))
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Predicts the noise in a scaled latent."""

    def __init__(self, shape: Shape) -> None:
        """Build on the living channels only."""
        super().__init__()
        s = self.shape = shape
        self.time1, self.time2 = nn.Linear(FULL, s.time), nn.Linear(s.time, s.time)
        self.enter = _conv(4, s.fine)
        self.fine_in = ResBlock(s.fine, 0, s.fine, s.time)
        self.down = _conv(s.fine, s.coarse, stride=2)

        def transformer() -> Transformer:
            return Transformer(s.coarse, s.feed, s.text)

        def res(n_skip: int) -> ResBlock:
            return ResBlock(s.coarse, n_skip, s.coarse, s.time)

        self.coarse_in = nn.ModuleList(
            nn.ModuleList([res(0), transformer()]) for _ in range(s.blocks)
        )
        self.middle = nn.ModuleList([res(0), transformer(), res(0)])
        self.coarse_out = nn.ModuleList(
            nn.ModuleList([res(s.coarse), transformer()]) for _ in range(s.blocks + 1)
        )
        self.up = _conv(s.coarse, s.fine)
        self.fine_out = ResBlock(s.fine, s.fine, s.fine, s.time)
        self.last = ResBlock(s.fine, s.fine, s.fine, s.time) if s.last else None
        self.norm = nn.GroupNorm(s.fine // 10, s.fine)
        self.leave = _zero(_conv(s.fine, 4))

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """[B, 4, H, W], timesteps [B] in 0 .. 999, states [B, 77, text] to the noise."""
        half = torch.arange(FULL // 2, device=x.device, dtype=torch.float32) / (FULL // 2)
        angle = t.float()[:, None] * torch.exp(-math.log(10000) * half)
        time = torch.cat([angle.cos(), angle.sin()], -1).to(x.dtype)
        time = F.silu(self.time2(F.silu(self.time1(time))))
        first = self.enter(x)
        second = self.fine_in(first, time)
        h = self.down(second)
        skips = [h]
        for block, attend in cast(Iterable[nn.ModuleList], self.coarse_in):
            h = attend(block(h, time), text)
            skips.append(h)
        h = self.middle[0](h, time)
        h = self.middle[2](self.middle[1](h, text), time)
        for block, attend in cast(Iterable[nn.ModuleList], self.coarse_out):
            h = attend(block(torch.cat([h, skips.pop()], 1), time), text)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.fine_out(torch.cat([h, second], 1), time)
        if self.last is not None:
            h = self.last(torch.cat([h, first], 1), time)
        return self.leave(F.silu(self.norm(h)))
