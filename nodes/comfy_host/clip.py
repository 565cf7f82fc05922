"""A CLIP of two sockets: sentences and pictures in one space, the latter with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel as ClipVision
from comfy.sd import CLIP as Clip
from torch import Tensor

from ..errors import BadInputError
from .in_place import copied_before_change
from .kernels import differentiable_kernels
from .trainable import frozen_weights, trainable_clone

See = Callable[[Tensor], tuple[Tensor, Tensor]]


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
def seeing(clip_vision: ClipVision) -> Iterator[See]:
    """The vision encoder loaded, with a gradient by its pictures; on exit it is as it was.

    The host's own way of preparing a picture rounds it to 8 bits, which has none.

    Yields:
        Pictures [B, 3, H, W] in 0..1, on its device -> their embeddings [B, P], and the tokens
        [B, N, W] before the last layer. Pictures that are not square are stretched.
    """
    patcher = trainable_clone(clip_vision.patcher)
    model, size = patcher.model, clip_vision.image_size

    def see(pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1).to(x)
            for values in (clip_vision.image_mean, clip_vision.image_std)
        )
        with copied_before_change():
            out = model(pixel_values=(x - mean) / std, intermediate_output=-2)
        return out[2], out[1]

    with ExitStack() as undo:
        # Asking for more than there is makes room: all else is unloaded.
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=1e20, force_full_load=True
        )
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(frozen_weights(model))
        undo.enter_context(differentiable_kernels())
        yield see
