"""What tells one model from another."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .lora import carried, patch_tensors
from .sockets import Model
from .weights import weight_shapes

SAMPLED_WEIGHTS, SAMPLED_NUMBERS = 8, 4096


def model_kind(model: Model) -> str:
    """The host's name for the kind of model, such as `SD15`."""
    return type(model.model.model_config).__name__


def distilled_steps(model: Model) -> str | None:
    """What tells that the model was distilled to few steps; None where nothing of the host's does.

    Of many such models, Lightning, Turbo or Klein, only the file's name tells, which nobody hands
    on.
    """
    if model_kind(model) == "FluxSchnell":
        return "Flux schnell"
    # Of the host's model sampling for LCM.
    if hasattr(model.get_model_object("model_sampling"), "skip_steps"):
        return "LCM sampling"
    return None


def context_width(model: Model) -> int | None:
    """Width W of the tokens that the model takes; None where its configuration does not tell."""
    width = model.model.model_config.unet_config.get("context_dim")
    return width if isinstance(width, int) else None


def base_hash(model: Model) -> str:
    """A quick hash that tells models apart: a few of the weights, and the patches on top.

    The same weights in float32, float16 and bfloat16 have the same hash.
    """
    digest = hashlib.sha256(model_kind(model).encode())
    keys = sorted(k for k, shape in weight_shapes(model).items() if len(shape) >= 2)
    for key in keys[:: max(1, len(keys) // SAMPLED_WEIGHTS)]:
        # Asks the host, which knows the weight as it was before a patch was written over it.
        weight = model.get_key_patches(key)[key][0][0]
        digest.update(key.encode() + _sample(weight))
    for key in sorted(model.patches):
        for patch in model.patches[key]:
            digest.update(f"{key} {patch[0]}".encode())
            for tensor in patch_tensors(patch[1]):
                digest.update(_sample(tensor.flatten()[:64]))
    for name in sorted(carried(model)):
        digest.update(name.encode())
    return digest.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    numbers = tensor.detach().to("cpu", torch.bfloat16).flatten()[:SAMPLED_NUMBERS]
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
