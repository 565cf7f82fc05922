"""The weights of the model: which can move, what is added to them, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.sd
import torch
from comfy.weight_adapter import adapter_maps
from torch import Tensor

from ...imagic_core.finetune import Difference, choose_changes

SAMPLED_WEIGHTS, SAMPLED_NUMBERS = 8, 4096


def patchable_weights(model: Any) -> dict[str, Tensor]:
    """State dict key -> weight or bias, of the diffusion model's layers that the host can patch."""
    return {
        f"diffusion_model.{path}.{name}": tensor
        for path, module in model.model.diffusion_model.named_modules()
        if hasattr(module, "weight_function")
        for name in ("weight", "bias")
        if (tensor := getattr(module, name, None)) is not None
    }


def weight_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """State dict key -> shape, of ``patchable_weights``."""
    return {key: tuple(weight.shape) for key, weight in patchable_weights(model).items()}


def new_changes(
    model: Any, method: str, rank: int, alpha: float, seed: int
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


def changes_to_lora(changes: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Trained changes as a LORA_MODEL in the host's own key names, float32 on the CPU."""
    lora: dict[str, Tensor] = {}
    for key, change in changes.items():
        path, name = key.rsplit(".", 1)
        if isinstance(change, Difference):
            lora[f"{path}.{'diff' if name == 'weight' else 'diff_b'}"] = change.difference
        else:
            lora.update((f"{path}.{part}", p) for part, p in change.named_parameters())
    return {name: p.detach().float().cpu().contiguous() for name, p in lora.items()}


def apply_lora(model: Any, lora: dict[str, Tensor], strength: float = 1.0) -> Any:
    """A fresh clone of MODEL with the LORA_MODEL added by the host's own loader."""
    with torch.inference_mode(False):
        return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def check_lora(node: str, socket: str, model: Any, lora: Mapping[str, Tensor]) -> None:
    """Refuse a LORA_MODEL that names layers which the model does not have.

    Raises:
        ValueError: it was learned on another kind of model.
    """
    layers = {f"diffusion_model.{path}" for path, _ in model.model.diffusion_model.named_modules()}
    suffixes = (".lora_up.weight", ".lora_down.weight", ".alpha", ".diff", ".diff_b")
    unknown = [
        key
        for key in lora
        if next((key[: -len(s)] for s in suffixes if key.endswith(s)), "") not in layers
    ]
    if unknown or not lora:
        example = f", such as {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"{node}: '{socket}' has {len(unknown)} of {len(lora)} weights for layers that the "
            f"model does not have{example}; connect the kind of model it was learned on."
        )


def lora_by_part(model: Any, lora: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
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


# ---- which model it is ----------------------------------------------------------------------


def model_kind(model: Any) -> str:
    """The host's name for the kind of model, such as `SD15`."""
    return type(model.model.model_config).__name__


def context_width(model: Any) -> int | None:
    """Width W of the tokens that the model takes; None where its configuration does not tell."""
    width = model.model.model_config.unet_config.get("context_dim")
    return width if isinstance(width, int) else None


def base_hash(model: Any) -> str:
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
            for tensor in _patch_tensors(patch[1]):
                digest.update(_sample(tensor.flatten()[:64]))
    return digest.hexdigest()


def has_lora(model: Any, lora: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of the LORA_MODEL is among the patches of MODEL already."""
    for key, tensor in lora.items():
        layer = key.removesuffix(".lora_up.weight")
        place = f"{layer}.weight" if layer != key else f"{key.removesuffix('.diff')}.weight"
        for patch in model.patches.get(place, ()):
            if any(t is tensor or torch.equal(t, tensor) for t in _patch_tensors(patch[1])):
                return True
    return False


def _patch_tensors(patch: Any) -> Iterator[Tensor]:
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, list | tuple):
        for one in patch:
            yield from _patch_tensors(one)
    elif hasattr(patch, "weights"):
        yield from _patch_tensors(patch.weights)


def _sample(tensor: Tensor) -> bytes:
    numbers = tensor.detach().to("cpu", torch.bfloat16).flatten()[:SAMPLED_NUMBERS]
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
