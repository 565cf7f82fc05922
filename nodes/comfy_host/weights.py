"""The weights of the model that can move, and their changes before training."""

from __future__ import annotations

import torch
from torch import Tensor

from ...imagic_core.changes import Difference, LowRank
from ...imagic_core.finetune import choose_changes
from ..errors import BadInputError
from .lora import Lora, begin_with, check_lora, rank_of
from .sockets import Model

Changes = dict[str, Difference | LowRank]
"""State dict key of a weight or bias -> its change."""


def layers(model: Model) -> dict[str, torch.nn.Module]:
    """Path -> layer, of the diffusion model's layers whose weights the host can change."""
    return {
        f"diffusion_model.{path}": layer
        for path, layer in model.model.diffusion_model.named_modules()
        if hasattr(layer, "weight_function")
    }


def weight_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """State dict key -> shape, of all weights and biases of ``layers``."""
    return {
        f"{path}.{name}": tuple(tensor.shape)
        for path, layer in layers(model).items()
        for name in ("weight", "bias")
        if (tensor := getattr(layer, name, None)) is not None
    }


def check_wired(model: Model, lora: Lora) -> None:
    """See that what is wired to an input `lora` fits the model.

    Raises:
        BadInputError: it does not.
    """
    try:
        check_lora(weight_shapes(model), lora)
    except BadInputError as error:
        raise BadInputError(
            f"'lora' {error}; connect the kind of model it was learned on."
        ) from error


def new_changes(
    model: Model, method: str, rank: int, seed: int, lora: Lora | None = None
) -> Changes:
    """The changes of the weights that ``method`` moves, as they are before training.

    They start at nothing, or at what ``lora`` has, whose rank goes before ``rank``.

    Raises:
        BadInputError: a weight to be moved is quantised, so that no difference can be added to it;
            or ``lora`` does not fit the model, or what the method moves.
        ValueError: see ``imagic_core.finetune.choose_changes``.
    """
    if lora is not None:
        check_wired(model, lora)
        rank = rank_of(lora) or rank
    generator = torch.Generator().manual_seed(seed)
    movable = layers(model)
    with torch.inference_mode(False):
        changes = choose_changes(method, movable, lambda layer: LowRank(layer, rank, generator))
    for key, change in changes.items():
        layer, name = movable[key.rpartition(".")[0]], key.rpartition(".")[2]
        if isinstance(change, Difference) and is_quantised(layer, getattr(layer, name)):
            raise BadInputError(
                f"'model' is quantised ({key} is a {kind(getattr(layer, name))}), which method "
                f"{method!r} cannot move; choose method 'lora', or load the model in float32, "
                "float16, bfloat16 or plain float8."
            )
    if lora is not None:
        begin_with(changes, lora)
    return changes


def is_quantised(layer: torch.nn.Module, weight: Tensor) -> bool:
    """Whether the numbers of a weight are not what the layer multiplies with."""
    scaled = getattr(layer, "scale_weight", None) is not None and weight is layer.weight
    return type(weight.data) is not Tensor or not weight.is_floating_point() or scaled


def kind(weight: Tensor) -> str:
    """What a weight is, for errors."""
    return f"{type(weight.data).__name__} of {weight.dtype}"
