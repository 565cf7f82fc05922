"""What tells one model from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from .carried import carried
from .lora import patch_tensors
from .sockets import Model
from .weights import weight_shapes

SAMPLED_WEIGHTS, SAMPLED_NUMBERS = 8, 4096
QUANTISED_ALIKE = 0.95
"""Cosine of a weight with itself in float8 or 4 bits is above it, with another model's about 0."""


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
    for key, weight in _sampled_weights(model).items():
        digest.update(key.encode() + _sample(weight))
    for key in sorted(model.patches):
        for patch in model.patches[key]:
            digest.update(f"{key} {patch[0]}".encode())
            for tensor in patch_tensors(patch[1]):
                digest.update(_sample(tensor.flatten()[:64]))
    for one in carried(model).values():
        digest.update(str(one.strength).encode())
        for key in sorted(one.lora):
            digest.update(key.encode() + _sample(one.lora[key].flatten()[:64]))
    return digest.hexdigest()


def base_sample(model: Model) -> dict[str, Any]:
    """What ``is_same_quantised`` compares with, in JSON's types: a few numbers of some weights."""
    weights = _sampled_weights(model)
    numbers = {key: _first(weight).tolist() for key, weight in weights.items()}
    return {"quantised": any(map(_is_quantised, weights.values())), "numbers": numbers}


def is_same_quantised(model: Model, sample: Any) -> bool:
    """Whether MODEL seems to be the one of ``base_sample``, and one of both is quantised.

    Of two models that are not, a small difference is another training. Nothing is said of a model
    with patches, which the sample does not see.
    """
    try:
        known = {key: torch.tensor(numbers) for key, numbers in sample["numbers"].items()}
        quantised = bool(sample["quantised"])
    except (TypeError, KeyError, AttributeError, ValueError):
        return False
    weights = _sampled_weights(model)
    if model.patches or carried(model) or known.keys() != weights.keys():
        return False
    if not quantised and not any(map(_is_quantised, weights.values())):
        return False
    alike = [  # of the directions: some formats have a scale beside the numbers
        torch.cosine_similarity(_first(weights[key]), numbers, 0)
        for key, numbers in known.items()
        if numbers.shape == _first(weights[key]).shape
    ]
    return len(alike) == len(known) and bool(torch.stack(alike).mean() > QUANTISED_ALIKE)


def _sampled_weights(model: Model) -> dict[str, Tensor]:
    keys = sorted(k for k, shape in weight_shapes(model).items() if len(shape) >= 2)
    # Asks the host, which knows the weight as it was before a patch was written over it.
    return {
        key: model.get_key_patches(key)[key][0][0]
        for key in keys[:: max(1, len(keys) // SAMPLED_WEIGHTS)]
    }


def _is_quantised(weight: Tensor) -> bool:
    return type(weight.data) is not Tensor or weight.dtype.itemsize < 2


def _first(weight: Tensor) -> Tensor:
    return weight.detach().flatten()[:64].float().cpu()


def _sample(tensor: Tensor) -> bytes:
    numbers = tensor.detach().to("cpu", torch.bfloat16).flatten()[:SAMPLED_NUMBERS]
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
