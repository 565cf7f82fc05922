"""How much memory there is, and what can never fit into it."""

from __future__ import annotations

import comfy.model_management
import psutil
import torch

from . import comfy_host
from .errors import OutOfMemoryError

GB = 2**30


def memory(device: torch.device) -> str:
    """How much of a device's memory is taken, by whomever, and how much is free."""
    if device.type == "cuda":
        # Of the driver: what PyTorch keeps for itself between two steps will be taken again.
        free, total = torch.cuda.mem_get_info(device)
    else:
        free = comfy.model_management.get_free_memory(device)
        total = comfy.model_management.get_total_memory(device)
    return f"memory: {(total - free) / GB:.1f} GB taken, {free / GB:.1f} GB free"


def check_fits(model: comfy_host.Model, changes: comfy_host.Changes) -> int:
    """Refuse what cannot fit in any way, before anything is loaded.

    Returns:
        The bytes that a training takes at least: of the weights, and of what is learned with its
        gradient.

    Raises:
        OutOfMemoryError: the device does not have that much, were it all free.
    """
    device = model.load_device
    weights = model.model_size()
    learned = sum(p.nbytes for change in changes.values() for p in change.parameters())
    there = comfy.model_management.get_total_memory(device)
    if device.type == "cpu":
        there += psutil.swap_memory().total
    if weights + 2 * learned > there:
        smaller = "method 'lora' with a lower rank, or a model in a smaller number format"
        raise OutOfMemoryError(
            f"the weights take {weights / GB:.1f} GB, and what is learned with its gradient "
            f"{2 * learned / GB:.1f} GB, more than the {there / GB:.1f} GB that {device} has in "
            f"all. Use {smaller}."
        )
    return weights + 2 * learned
