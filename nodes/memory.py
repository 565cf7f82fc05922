"""How much memory there is, what a training takes of it, and what it could do with less."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import psutil
import torch

from ..imagic_core.changes import Difference
from . import comfy_host
from .errors import OutOfMemoryError

GB = 2**30
MOMENTUM = {True: 0.5, False: 1.0}
"""What the pack's own steps keep of whole weights, or of thin matrices, in the size of these."""
SAVE_MEMORY = ("auto", "on", "off")
"""Whether a training may keep what blocks make, until memory runs out, never, or always."""


def memory(device: torch.device) -> str:
    """How much of a device's memory is taken, by whomever, and how much is free."""
    if device.type == "cuda":
        # Of the driver: what PyTorch keeps for itself between two steps will be taken again.
        free, total = torch.cuda.mem_get_info(device)
    else:
        free = comfy.model_management.get_free_memory(device)
        total = comfy.model_management.get_total_memory(device)
    return f"memory: {(total - free) / GB:.1f} GB taken, {free / GB:.1f} GB free"


@dataclass(frozen=True)
class Way:
    """How a training computes. None changes the result, but for rounding.

    Attributes:
        at_once: draws that pass through the model together.
        recompute: blocks are passed once more instead of kept for the backward pass.
        in_main_memory: weights may lie there while they are not in use.
    """

    at_once: int
    recompute: bool
    in_main_memory: bool = False

    def __str__(self) -> str:
        """Such as `2 at a time, blocks recomputed`."""
        words = [f"{self.at_once} at a time"]
        words += ["blocks recomputed"] if self.recompute else []
        words += ["idle weights in main memory"] if self.in_main_memory else []
        return ", ".join(words)


def ways(save_memory: str, at_once: int) -> list[Way]:
    """Those that a choice of ``SAVE_MEMORY`` allows, the next one slower and smaller."""
    found = {"on": [], "off": [Way(at_once, False)], "auto": [Way(at_once, False)]}[save_memory]
    if save_memory != "off":
        found += [Way(at_once, True), Way(1, True), Way(1, True, in_main_memory=True)]
    return list(dict.fromkeys(found))


class TightError(Exception):
    """There is less memory free than a training will take; nothing was trained yet."""


def at_least(model: comfy_host.Model, changes: comfy_host.Changes, way: Way) -> int:
    """Bytes of the device that a training takes at least, seen before anything is loaded.

    Raises:
        OutOfMemoryError: the device does not have that much, were it all free.
    """
    device, learned = model.load_device, int((1 + MOMENTUM[_is_whole(changes)]) * _learned(changes))
    weights = model.model_size()
    there = comfy.model_management.get_total_memory(device)
    if device.type == "cpu":
        there += psutil.swap_memory().total
    least = learned if way.in_main_memory and device.type != "cpu" else weights + learned
    if least > there:
        raise OutOfMemoryError(
            f"the weights take {weights / GB:.1f} GB, and what is learned and its momentum "
            f"{learned / GB:.1f} GB, more than the {there / GB:.1f} GB that {device} has in all. "
            "Use method 'lora' with a lower rank, or a model in a smaller number format."
        )
    return least


def check_free(
    device: torch.device,
    draw: int | None,
    changes: comfy_host.Changes,
    way: Way,
    *,
    relative: bool,
) -> int | None:
    """See, with the model loaded, whether its training fits into what is free.

    Args:
        device: of the model.
        draw: bytes that one draw took, forth and back; None where the device does not tell.
        changes: of the weights.
        way: how it will compute.
        relative: see ``Settings``.

    Returns:
        The bytes that it will take, beside the weights; None where that is not known.

    Raises:
        TightError: they are not free.
    """
    if draw is None:
        return None
    # Beside the momentum the gradient and what is made of it; of whole weights one layer's alone.
    states = MOMENTUM[True] if relative and _is_whole(changes) else 3
    needed = way.at_once * draw + int(states * _learned(changes))
    free = int(comfy.model_management.get_free_memory(device))
    if needed > free:
        raise TightError(f"{needed / GB:.1f} GB are needed, {free / GB:.1f} GB are free")
    return needed


def _is_whole(changes: comfy_host.Changes) -> bool:
    return any(isinstance(change, Difference) for change in changes.values())


def _learned(changes: comfy_host.Changes) -> int:
    return sum(p.nbytes for change in changes.values() for p in change.parameters())
