"""LORA_MODEL: what stage B learned in ComfyUI's key names, which only this module knows.

======================================  ===================================================
``LAYER.lora_up.weight``                [out, r] of a low-rank change of ``LAYER.weight``
``LAYER.lora_down.weight``              [r, in x kernel] of the same
``LAYER.alpha``                         a number; the change counts alpha / r times
``LAYER.diff``, ``LAYER.diff_b``        difference of ``LAYER.weight``, ``LAYER.bias``
======================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...imagic_core.changes import Difference, LowRank
from ..errors import BadInputError
from .sockets import Model

Lora = Mapping[str, Tensor]

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
DIFF, DIFF_BIAS = ".diff", ".diff_b"
HALF_ERROR = 1e-3
"""Relative error by which a matrix may change in float16; ordinary numbers change by 3e-4."""


def layer_of(key: str) -> tuple[str, str]:
    """A key as the layer that it changes, and its ending, which is empty where there is none."""
    for part in (UP, DOWN, ALPHA, DIFF, DIFF_BIAS):
        if key.endswith(part):
            return key.removesuffix(part), part
    return key, ""


def changes_to_lora(changes: Mapping[str, Difference | LowRank]) -> dict[str, Tensor]:
    """Trained changes (state dict key -> module) as a LORA_MODEL, float32 on the CPU."""
    lora: dict[str, Tensor] = {}
    for key, change in changes.items():
        layer, name = key.rsplit(".", 1)
        if isinstance(change, Difference):
            lora[layer + (DIFF if name == "weight" else DIFF_BIAS)] = change.difference
        else:
            lora[layer + UP], lora[layer + DOWN] = change.up, change.down
            # As the host takes it where there is none; others may think otherwise.
            lora[layer + ALPHA] = torch.tensor(float(len(change.down)))
    return {name: t.detach().float().cpu().contiguous() for name, t in lora.items()}


def rank_of(lora: Lora) -> int | None:
    """The rank of a LORA_MODEL; None where it has only differences.

    Raises:
        BadInputError: it has several.
    """
    ranks = sorted({len(tensor) for key, tensor in lora.items() if layer_of(key)[1] == DOWN})
    if len(ranks) > 1:
        raise BadInputError(
            f"'lora' has the ranks {', '.join(map(str, ranks))}, but training goes on with one for "
            "all layers; connect what Imagic Fine-tune Model learned."
        )
    return ranks[0] if ranks else None


@torch.no_grad()
def begin_with(changes: Mapping[str, Difference | LowRank], lora: Lora) -> None:
    """Let untrained changes begin as a LORA_MODEL has them, which passes ``check_lora``.

    Raises:
        BadInputError: it has a change that none of them is.
    """
    left = dict(lora)
    for key, change in changes.items():
        layer, name = key.rsplit(".", 1)
        if isinstance(change, Difference):
            found = left.pop(layer + (DIFF if name == "weight" else DIFF_BIAS), None)
            if found is not None:
                change.moved.copy_(found)
        elif layer + DOWN in left:
            down = left.pop(layer + DOWN).flatten(1)
            alpha = left.pop(layer + ALPHA, None)
            change.down.copy_(down * (1.0 if alpha is None else alpha.item() / len(down)))
            change.out.copy_(left.pop(layer + UP).flatten(1).mT)
    if left:
        raise BadInputError(
            f"'lora' changes {layer_of(next(iter(left)))[0]!r:.120} in a way that 'method' does "
            "not; choose the method that it was learned by."
        )


def rounded(lora: Lora) -> dict[str, Tensor]:
    """The LORA_MODEL in the number formats that a file keeps it in, on the CPU.

    Low-rank matrices become float16 unless that would change them by more than ``HALF_ERROR``.
    Differences stay in float32: they are far smaller than float16 resolves.
    """
    return {key: halved(key, tensor.detach().cpu()) for key, tensor in lora.items()}


def halved(key: str, tensor: Tensor) -> Tensor:
    """One tensor of ``rounded``."""
    exact, half = tensor.float(), tensor.half()
    if not key.endswith((UP, DOWN)):
        return exact
    error = (half.float() - exact).norm()
    return half if error <= HALF_ERROR * exact.norm() else exact


def check_lora(shapes: Mapping[str, tuple[int, ...]], lora: Lora) -> None:
    """Compare a LORA_MODEL with the weights of a model.

    Args:
        shapes: state dict key -> shape, see ``weight_shapes``.
        lora: what is wired or was read.

    Raises:
        BadInputError: a tensor has no place in the model, or not its shape; the message says what
            it has and what the model has there, and not where it came from.
    """
    if not lora:
        raise BadInputError("has no weights")
    for key, tensor in lora.items():
        layer, part = layer_of(key)
        shape = shapes.get(f"{layer}.{'bias' if part == DIFF_BIAS else 'weight'}")
        if shape is None or not part or not _fits(lora, layer, part, shape):
            raise BadInputError(
                f"has {key!r:.120} of shape {tuple(tensor.shape)}, the model has there "
                f"{'nothing' if shape is None else shape}"
            )


def _fits(lora: Lora, layer: str, part: str, shape: tuple[int, ...]) -> bool:
    if part in (DIFF, DIFF_BIAS):
        return tuple(lora[layer + part].shape) == shape
    up, down = lora.get(layer + UP), lora.get(layer + DOWN)
    if up is None or down is None or min(up.ndim, down.ndim, len(shape)) < 2:
        return False
    if part == ALPHA:
        return lora[layer + part].numel() == 1
    out, rank = up.flatten(1).shape
    return (out, rank, down[0].numel()) == (shape[0], len(down), prod(shape[1:]))


def patch_tensors(patch: Any) -> Iterator[Tensor]:
    """The tensors in a patch of the host's."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, list | tuple):
        for one in patch:
            yield from patch_tensors(one)
    elif hasattr(patch, "weights"):
        yield from patch_tensors(patch.weights)


# ---- parts of the network -------------------------------------------------------------------


def lora_by_part(model: Model, lora: Lora) -> dict[str, dict[str, Tensor]]:
    """Split a LORA_MODEL into the network's `encoder`, `middle` and `decoder`.

    A U-Net has these by construction. Of a network that is one row of blocks, they are the first,
    second and last third of the row. What comes before the blocks counts as encoder, what comes
    after them as decoder.
    """
    network = model.model.diffusion_model
    rows = [
        f"diffusion_model.{path}.{i}."
        for path, module in network.named_children()
        if isinstance(module, torch.nn.ModuleList)
        for i in range(len(module))
    ]
    is_unet = hasattr(network, "middle_block")
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "middle": {}, "decoder": {}}
    after = {
        f"diffusion_model.{path}."
        for path in _children_after_blocks(network)
        if not path.startswith("middle_block")
    }
    for key, tensor in lora.items():
        place = next((i for i, row in enumerate(rows) if key.startswith(row)), None)
        if key.startswith("diffusion_model.middle_block."):
            part = "middle"
        elif place is None:
            part = "decoder" if any(key.startswith(path) for path in after) else "encoder"
        elif is_unet:
            part = (
                "encoder" if rows[place].startswith("diffusion_model.input_blocks.") else "decoder"
            )
        else:
            part = ("encoder", "middle", "decoder")[min(2, 3 * place // len(rows))]
        parts[part][key] = tensor
    return parts


def _children_after_blocks(network: torch.nn.Module) -> list[str]:
    names = [name for name, _ in network.named_children()]
    lists = [n for n, m in network.named_children() if isinstance(m, torch.nn.ModuleList)]
    return names[names.index(lists[-1]) + 1 :] if lists else []
