"""A LORA_MODEL put into a MODEL, found there, and taken out again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.sd
import torch
from torch import Tensor

from .bypass import Bypass
from .lora import ALPHA, DIFF, DIFF_BIAS, DOWN, UP, Lora, halved, layer_of, patch_tensors
from .rounding import DROPPED_BITS, rounded
from .sockets import Model

PREFIX = "imagic "
"""Begins the names under which a MODEL keeps what ``apply_lora`` has put into it."""


@dataclass(frozen=True)
class Carried:
    """What one ``apply_lora`` has put into a MODEL.

    Attributes:
        lora: the LORA_MODEL.
        strength: as often as it counts.
        differences: what was added to the weights for it, by ``lora``'s keys.
    """

    lora: Lora
    strength: float
    differences: Lora


def carried(model: Model) -> dict[str, Carried]:
    """All that MODEL carries, by the name of its attachment and injection."""
    return {k: v for k, v in model.attachments.items() if k.startswith(PREFIX)}


def apply_lora(model: Model, lora: Lora, strength: float = 1.0) -> Model:
    """A fresh clone of MODEL with the LORA_MODEL in it, as it was when its training ended.

    Low-rank changes go beside the layers, differences into the weights.
    """
    matrices, differences = {}, {}
    with torch.inference_mode(False):
        for key, tensor in lora.items():
            layer, part = layer_of(key)
            if part == UP:
                down = lora[layer + DOWN].flatten(1)
                alpha = lora.get(layer + ALPHA)
                share = strength * (1.0 if alpha is None else alpha.item() / len(down))
                matrices[layer] = (tensor.flatten(1).float() * share, down.float().clone())
            elif part in (DIFF, DIFF_BIAS):
                shared = strength == 1 and not tensor.is_inference()
                differences[key] = tensor.float() if shared else tensor.float() * strength
        if differences:
            differences = _exact(model, differences)
            tuned = comfy.sd.load_lora_for_models(model, None, differences, 1.0, 0)[0]
        else:
            tuned = model.clone()
    # The host tells clones apart by these names alone.
    name = f"{PREFIX}{uuid.uuid4()}"
    tuned.set_attachments(name, Carried(dict(lora), strength, differences))
    if matrices:
        tuned.set_injections(name, [Bypass(matrices, patched)])
    return tuned


def patched(model: Model) -> Model:
    """A clone of MODEL with all that lies beside its layers as the host's patches instead."""
    clone = model.clone()
    for name, one in carried(model).items():
        clone.remove_attachments(name)
        clone.remove_injections(name)
        thin = {k: t for k, t in one.lora.items() if layer_of(k)[1] in (UP, DOWN, ALPHA)}
        if thin:
            clone = comfy.sd.load_lora_for_models(clone, None, thin, one.strength, 0)[0]
    return clone


def _exact(model: Model, differences: Lora) -> dict[str, Tensor]:
    """The differences that the host's rounding leaves as training had them; see ``rounding``."""
    known, exact = model.get_key_patches("diffusion_model."), {}
    for key, difference in differences.items():
        layer, part = layer_of(key)
        name = f"{layer}.{'weight' if part == DIFF else 'bias'}"
        (weight, convert), *patches = known[name]
        exact[key] = difference
        if weight.dtype in DROPPED_BITS:
            before = comfy.lora.calculate_weight(patches, convert(weight.float()), name)
            after = before.to(weight.dtype).float() + difference.to(before)
            exact[key] = rounded(after, weight.dtype, name) - before
    return exact


def has_lora(model: Model, lora: Lora) -> bool:
    """Whether the LORA_MODEL is in MODEL already, put there by this pack or by the host."""
    return any(_is_same(one.lora, lora) for one in carried(model).values()) or any(
        _is_of(lora, key, patch) for key, patches in model.patches.items() for patch in patches
    )


def without_lora(model: Model, lora: Lora) -> Model:
    """A clone of MODEL without what this LORA_MODEL put there; all else stays."""
    bare = model.clone()
    added: list[Tensor] = []
    for name, one in carried(model).items():
        if _is_same(one.lora, lora):
            bare.remove_attachments(name)
            bare.remove_injections(name)
            added += one.differences.values()
    others = {
        key: [patch for patch in patches if not _is_of(lora, key, patch, added)]
        for key, patches in model.patches.items()
    }
    bare.patches = {key: patches for key, patches in others.items() if patches}
    bare.patches_uuid = uuid.uuid4()  # by this the host knows which patches a loaded model has
    return bare


def _is_same(a: Lora, b: Lora) -> bool:
    return any(_equal(part, a[k], b[k]) for k, part in _telling(b) if k in a)


def _is_of(lora: Lora, key: str, patch: Any, added: list[Tensor] | None = None) -> bool:
    """Whether a patch of the weight ``key`` is this LORA_MODEL's, as trained or as saved."""
    tensors = list(patch_tensors(patch[1]))
    if any(one is tensor for one in added or () for tensor in tensors):
        return True
    layer, name = key.rsplit(".", 1)
    parts = (DIFF_BIAS,) if name == "bias" else (DOWN, DIFF)
    return any(
        _equal(part, one, lora[layer + part])
        for part in parts
        if layer + part in lora
        for one in tensors
    )


def _telling(lora: Lora) -> Iterator[tuple[str, str]]:
    for key in lora:
        part = layer_of(key)[1]
        if part in (DOWN, DIFF, DIFF_BIAS):
            yield key, part


def _equal(part: str, a: Tensor, b: Tensor) -> bool:
    """Whether both are one tensor, as trained or as a file keeps it.

    Nothing is told by zeros: differences begin there, and stay where no gradient came.
    """
    if a.shape != b.shape or not b.any():
        return False
    if a is b:
        return True
    one, other = (halved(part, t.detach().cpu()).float() for t in (a, b))
    return torch.equal(one, other)
