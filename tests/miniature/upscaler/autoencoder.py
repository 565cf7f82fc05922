"""A narrow autoencoder in the shape of the x4 upscaler's: a quarter of the width, four channels.

Its modules have the names of the full layout, in which the blocks left out here are zero and hence
pass through. Pictures are [B, 3, H, W] in [-1, 1], latents [B, 4, H/4, W/4].
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# Living channels at the full, the half and the quarter of the width: multiples of 4, 8 and 16.
FULL, HALF, QUARTER = 16, 32, 64
GROUPS = 32


def _conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=padding)


def _norm(living: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(living * GROUPS // width, living, eps=1e-6)


class Block(nn.Module):
    """The layout's residual block, `width` channels wide there."""

    def __init__(self, n_in: int, n_out: int, width_in: int, width_out: int) -> None:
        """`n_in` and `n_out` channels live. The block starts as its shortcut."""
        super().__init__()
        self.norm1, self.conv1 = _norm(n_in, width_in), _conv(n_in, n_out)
        self.norm2, self.conv2 = _norm(n_out, width_out), _conv(n_out, n_out)
        nn.init.zeros_(self.conv2.weight)
        if width_in != width_out:
            self.nin_shortcut = _conv(n_in, n_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, n_in, H, W] to [B, n_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Resample(nn.Module):
    def __init__(self, n_in: int, n_out: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, _conv(n_in, n_out, stride=1 if up else 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    def __init__(self, blocks: dict[str, Block]) -> None:
        super().__init__()
        self.block = nn.ModuleDict(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block.values():
            x = block(x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class _Ends(nn.Module):
    def __init__(self, n_in: int, first: int, last: tuple[int, int], n_out: int) -> None:
        super().__init__()
        self.conv_in = _conv(n_in, first)
        self.norm_out, self.conv_out = _norm(*last), _conv(last[0], n_out)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(_Ends):
    """Pictures to latents."""

    def __init__(self) -> None:
        """One living block where the width changes, none elsewhere."""
        super().__init__(3, FULL, (QUARTER, 512), 4)
        levels = [
            _Level({}),
            _Level({"0": Block(FULL, HALF, 128, 256)}),
            _Level({"0": Block(HALF, QUARTER, 256, 512)}),
        ]
        levels[0].downsample = _Resample(FULL, FULL, up=False)
        levels[1].downsample = _Resample(HALF, HALF, up=False)
        self.down = nn.ModuleList(levels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to [B, 4, H/4, W/4]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.leave(x)


class Decoder(_Ends):
    """Latents to pictures."""

    def __init__(self) -> None:
        """Both blocks of the middle live, and those where the width changes and one more."""
        super().__init__(4, QUARTER, (FULL, 128), 3)
        self.mid = nn.ModuleDict(
            {name: Block(QUARTER, QUARTER, 512, 512) for name in ("block_1", "block_2")}
        )
        levels = [
            _Level({"0": Block(HALF, FULL, 256, 128)}),
            _Level({"0": Block(HALF, HALF, 512, 256), "1": Block(HALF, HALF, 256, 256)}),
            _Level({}),
        ]
        levels[1].upsample = _Resample(HALF, HALF, up=True)
        levels[2].upsample = _Resample(QUARTER, HALF, up=True)
        self.up = nn.ModuleList(levels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[B, 4, H, W] to [B, 3, 4 H, 4 W]."""
        x = self.conv_in(z)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.leave(x)


class Autoencoder(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        """Build with the module's widths."""
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
