"""A narrow autoencoder whose weights fit into TAESD's layout, padded with zeros.

A TAESD block whose last convolution is zero is a plain ReLU, and a channel nobody reads may be
zero; so blocks and channels that this small world does not need are left out of training and
come back as zeros in `layout.taesd_tensors`. Pictures are [B, 3, H, W] in [0, 1], latents
[B, 4, H/8, W/8].
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# Channels at 1/8, 1/4, 1/2 and full resolution, and blocks trained at each.
WIDTHS = (64, 64, 32, 32)
BLOCKS = (3, 3, 2, 0)
ENCODER_BLOCKS = (3, 2, 1, 0)


def _conv(n_in: int, n_out: int, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(n_in, n_out, 3, padding=1, **options)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """TAESD's residual block at one width."""

    def __init__(self, width: int) -> None:
        """Start with a small last convolution, so that deep stacks start near the identity."""
        super().__init__()
        first, middle, last = (_conv(width, width) for _ in range(3))
        with torch.no_grad():
            last.weight.mul_(0.3)
        self.conv = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, width, H, W] to the same shape."""
        return F.relu(self.conv(x) + x)


class Level(nn.Module):
    """The change of resolution that opens a level, and the level's trained blocks."""

    def __init__(self, n_in: int, n_out: int, blocks: int, stride: int = 1, bias: bool = False):
        """Without any trained block, TAESD's own blocks still leave one ReLU."""
        super().__init__()
        self.change = _conv(n_in, n_out, stride=stride, bias=bias)
        self.blocks = nn.ModuleList(Block(n_out) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, n_in, H, W] to [B, n_out, H / stride, W / stride]."""
        x = self.change(x)
        for block in self.blocks:
            x = block(x)
        return x if len(self.blocks) else F.relu(x)


class Autoencoder(nn.Module):
    """Encoder and decoder; latents have about unit variance after training."""

    def __init__(self) -> None:
        """Build with the module's widths."""
        super().__init__()
        eighth, quarter, half, full = WIDTHS
        b = ENCODER_BLOCKS
        self.encoder = nn.ModuleList(
            [
                Level(3, full, b[3], bias=True),
                Level(full, half, b[2], stride=2),
                Level(half, quarter, b[1], stride=2),
                Level(quarter, eighth, b[0], stride=2),
            ]
        )
        self.to_latent = _conv(eighth, 4)
        self.from_latent = _conv(4, eighth)
        self.first = nn.ModuleList(Block(eighth) for _ in range(BLOCKS[0]))
        self.decoder = nn.ModuleList(
            [
                Level(eighth, quarter, BLOCKS[1]),
                Level(quarter, half, BLOCKS[2]),
                Level(half, full, BLOCKS[3]),
            ]
        )
        self.to_picture = _conv(full, 3)
        self.to_picture.bias = nn.Parameter(torch.full((3,), 0.5))
        with torch.no_grad():
            self.to_picture.weight.mul_(0.2)
            self.to_latent.weight.mul_(0.5)

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] to latents."""
        for level in self.encoder:
            picture = level(picture)
        return self.to_latent(picture)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latents to pictures, about [0, 1], not clipped."""
        x = F.relu(self.from_latent(torch.tanh(latent / 3) * 3))
        for block in self.first:
            x = block(x)
        for level in self.decoder:
            x = level(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.to_picture(x)
