"""What ComfyUI has to run on that is faster than the CPU."""

from __future__ import annotations

import torch


def accelerators() -> int:
    """How many there are; 0 where there is only the CPU."""
    xpu = getattr(torch, "xpu", None)
    other = torch.backends.mps.is_available() or (xpu and xpu.is_available())
    return torch.cuda.device_count() or int(bool(other))
