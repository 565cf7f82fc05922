"""Rounding as the returned MODEL will have it, so that training ends at that MODEL's loss.

Differences that are small against a weight vanish when their sum is rounded to the nearest number
of the weight's format. Rounded up or down by chance, in proportion to what is near, they are kept
in the mean; the chance hangs on the weight's name alone, so that it is the same in training, in
the returned MODEL, and on every device.
"""

from __future__ import annotations

import comfy.float
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

string_to_seed = getattr(comfy.utils, "string_to_seed", None) or comfy.model_patcher.string_to_seed

DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""How many of the 23 bits of a float32's fraction a format does not keep."""


def rounded(weight: Tensor, stored: torch.dtype, key: str) -> Tensor:
    """float32 numbers as float32 that the format ``stored`` holds; ``key`` names the weight."""
    if stored == torch.float32:
        return weight
    seed = string_to_seed(key)
    if stored not in DROPPED_BITS:
        return comfy.float.stochastic_rounding(weight.clone(), stored, seed=seed).to(weight)
    dropped = DROPPED_BITS[stored]
    bits = _hashed(weight.numel(), seed, weight.device).bitwise_and_((1 << dropped) - 1)
    bits.add_(weight.contiguous().view(torch.int32).flatten())
    exact = bits.bitwise_right_shift_(dropped).bitwise_left_shift_(dropped).view(torch.float32)
    # What is below the smallest normal number of float16 is rounded to the nearest here.
    return exact.view(weight.shape).to(stored).to(weight)


def _hashed(count: int, seed: int, device: torch.device) -> Tensor:
    """[count] int32 that look like chance (the finaliser of MurmurHash3, on 31 bits)."""
    x = torch.arange(count, dtype=torch.int32, device=device).bitwise_xor_(seed & 0x7FFFFFFF)
    turned = torch.empty_like(x)

    def mix(shift: int) -> Tensor:
        torch.bitwise_right_shift(x, shift, out=turned)
        return x.bitwise_xor_(turned.bitwise_and_(0x7FFFFFFF >> (shift - 1)))

    mix(16).mul_(0x7FEB352D)
    mix(15).mul_(0x6C8B9CA7)
    return mix(16)
