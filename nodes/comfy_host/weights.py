"""The weights of the model that can move, and their changes before training."""

from __future__ import annotations

import torch
from comfy.weight_adapter import adapter_maps
from torch import Tensor

from ...imagic_core.finetune import choose_changes
from .sockets import Model


def patchable_weights(model: Model) -> dict[str, Tensor]:
    """State dict key -> weight or bias, of the diffusion model's layers that the host can patch."""
    return {
        f"diffusion_model.{path}.{name}": tensor
        for path, module in model.model.diffusion_model.named_modules()
        if hasattr(module, "weight_function")
        for name in ("weight", "bias")
        if (tensor := getattr(module, name, None)) is not None
    }


def weight_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """State dict key -> shape, of ``patchable_weights``."""
    return {key: tuple(weight.shape) for key, weight in patchable_weights(model).items()}


def new_changes(
    model: Model, method: str, rank: int, alpha: float, seed: int
) -> dict[str, torch.nn.Module]:
    """State dict key -> untrained change, of the weights that ``method`` moves.

    Raises:
        ValueError: see ``imagic_core.finetune.choose_changes``.
    """
    weights = patchable_weights(model)

    def low_rank(weight: Tensor) -> torch.nn.Module:
        shape = torch.empty(weight.shape, dtype=torch.float32)
        return adapter_maps["LoRA"].create_train(shape, rank=rank, alpha=alpha)

    # The host's LoRA module starts from PyTorch's global generator, which is not ours to move.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return choose_changes(method, weights, low_rank)
