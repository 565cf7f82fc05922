"""A CLIP of two sockets: sentences and pictures in one space, the latter with a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.clip_model import CLIPAttention
from comfy.clip_vision import ClipVisionModel as ClipVision
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP as Clip
from torch import Tensor

from ..errors import BadInputError
from .in_place import copied_before_change
from .kernels import differentiable_kernels
from .trainable import frozen_weights


def sentences_of_pair(clip_vision: ClipVision, clip: Clip, texts: Sequence[str]) -> Tensor:
    """Sentences [n, P] in the space into which ``clip_vision`` projects its pictures.

    Raises:
        BadInputError: the two are not of one CLIP.
    """
    projection = getattr(clip_vision.model, "visual_projection", None)
    weight: Any = getattr(projection, "weight", None)
    if weight is None:
        raise BadInputError(
            f"'clip_vision' is a {type(clip_vision.model).__name__} without a projection "
            "into the space of text; connect a Load CLIP Vision with a CLIP model."
        )
    told = torch.cat([text_features(clip, text) for text in texts])
    width, found = weight.shape[0], told.shape[-1]
    if found != width:
        raise BadInputError(
            f"'clip' describes a sentence by {found} numbers, 'clip_vision' a picture by "
            f"{width}; connect the text and the vision encoder of one and the same CLIP."
        )
    return told


def text_features(clip: Clip, text: str) -> Tensor:
    """The sentence [1, P] in the space that CLIP shares between text and pictures.

    Raises:
        BadInputError: the text encoder has no projection into that space.
    """
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1]
    for module in clip.cond_stage_model.modules() if pooled is not None else ():
        projection = getattr(getattr(module, "transformer", None), "text_projection", None)
        if not isinstance(projection, torch.nn.Module):
            continue
        stored: Any = projection.weight
        weight = stored.detach().float().cpu()
        if weight.shape[1] == pooled.shape[-1] and _is_learned(weight):
            # The host does not project where Stable Diffusion has no use for it.
            pooled = pooled.float().cpu()
            return pooled if module.return_projected_pooled else F.linear(pooled, weight)
    raise BadInputError(
        "'clip' has no text projection (checkpoints of Stable Diffusion 1.5 and Flux "
        "leave it out), so its sentences cannot be compared with pictures; connect Load CLIP "
        "with a whole CLIP file, the one that Load CLIP Vision has."
    )


def _is_learned(weight: Tensor) -> bool:
    """Whether these are weights: the host leaves a missing one as memory happens to be, or at 1."""
    if not weight.isfinite().all() or weight.count_nonzero() < weight.numel() / 2:
        return False
    spread = weight.std()
    centred = weight.mean().abs() < spread / 10
    return bool(centred and 1e-4 < spread < 1 and weight.abs().max() < 50 * spread)


@contextmanager
def seeing(clip_vision: ClipVision) -> Iterator[Eyes]:
    """The vision encoder loaded, with a gradient by its pictures; on exit it is as it was."""
    patcher = _in_ordinary_memory(clip_vision)
    with ExitStack() as undo:
        # Asking for more than there is makes room: all else is unloaded.
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=1e20, force_full_load=True
        )
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(frozen_weights(patcher.model))
        undo.enter_context(differentiable_kernels())
        yield Eyes(clip_vision, patcher.model)


def _in_ordinary_memory(clip_vision: ClipVision) -> ModelPatcher:
    """The encoder's patcher with weights that stay where they are, which dynamic ones do not."""
    patcher = clip_vision.patcher
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is None or not is_dynamic():
        return patcher.clone()
    # Of this kind of model the host has no other one to give.
    model = type(clip_vision)(clip_vision.config).model
    model.load_state_dict(clip_vision.get_sd())
    return ModelPatcher(model, patcher.load_device, patcher.offload_device)


class Eyes:
    """``imagic_core.text2live.Eyes`` of a CLIP_VISION, valid while ``seeing`` lasts."""

    def __init__(self, clip_vision: ClipVision, model: torch.nn.Module) -> None:
        """The host's own way of preparing a picture rounds it to 8 bits: it has no gradient."""
        self.model, self.size = model, clip_vision.image_size
        self.mean, self.std = (
            torch.tensor(values, device=clip_vision.load_device).view(1, 3, 1, 1)
            for values in (clip_vision.image_mean, clip_vision.image_std)
        )

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] in 0..1, on its device, stretched where they are not square.

        Returns:
            Their embeddings [B, P], and the tokens [B, N, W] before the last layer.
        """
        x = F.interpolate(pictures, (self.size, self.size), mode="bicubic", antialias=True)
        with copied_before_change():
            out = self.model(
                pixel_values=(x.clamp(0, 1) - self.mean) / self.std, intermediate_output=-2
            )
        return out[2], out[1]

    def relevance(self, picture: Tensor, sentence: Tensor) -> Tensor:
        """Where a picture [1, 3, H, W] shows what a sentence [P] says: [1, 1, H, W] in 0..1.

        Chefer et al. (ICCV 2021), of the last layer alone, as in Text2LIVE's code: what its first
        token attends to, where that brings picture and sentence nearer to each other.
        """
        with _last_attention(self.model) as passes:
            seen, _ = self.see(picture.detach().requires_grad_())
        nearness = F.cosine_similarity(seen, sentence[None]).sum()
        (attended,) = passes
        (slope,) = torch.autograd.grad(nearness, attended)
        patches = (attended * slope).detach().clamp(min=0).mean(1)[:, 0, 1:]
        side = round(patches.shape[1] ** 0.5)
        found = F.interpolate(patches.view(1, 1, side, side), picture.shape[-2:], mode="bilinear")
        low, high = found.aminmax()
        return (found - low) / (high - low).clamp(min=1e-12)


@contextmanager
def _last_attention(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Gets what the last layer's tokens attend to, [B, heads, N, N], of each pass."""
    passes: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: None) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        passes.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return (passes[-1] @ v).transpose(1, 2).flatten(2)

    *_, last = (module for module in model.modules() if isinstance(module, CLIPAttention))
    hook = last.register_forward_pre_hook(lambda _, inputs: (*inputs[:2], attention))
    try:
        yield passes
    finally:
        hook.remove()
