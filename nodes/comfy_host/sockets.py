"""What comes in over the sockets, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...imagic_core.objective import Embedding

_ENTRY_KEYS_REFUSED = {
    "control": "disconnect the Apply ControlNet node",
    "area": "disconnect the Conditioning (Set Area) node",
    "mask": "disconnect the Conditioning (Set Mask) node; a mask on the image is honoured instead",
    "hooks": "disconnect the hook nodes (Cond Set Props, Create Hook ...)",
    "gligen": "disconnect the GLIGENTextBoxApply node",
    "start_percent": "disconnect the ConditioningSetTimestepRange node",
    "end_percent": "disconnect the ConditioningSetTimestepRange node",
    "clip_start_percent": "disconnect the prompt schedule",
}


@dataclass(frozen=True)
class Text:
    """One CONDITIONING of one sentence: its embedding, and all else that its dictionary holds."""

    embedding: Embedding
    options: dict[str, Any]

    def with_embedding(self, embedding: Embedding) -> list[list[Any]]:
        """A CONDITIONING of another embedding, everything else carried through."""
        options = dict(self.options)
        if embedding.pooled is not None:
            options["pooled_output"] = embedding.pooled
        return [[embedding.tokens, options]]


def read_text(node: str, socket: str, conditioning: Any) -> Text:
    """Read a CONDITIONING that must be one plain sentence.

    Raises:
        ValueError: it holds several entries, or something that cannot be optimised.
    """
    if not conditioning:
        raise ValueError(
            f"{node}: '{socket}' is empty; connect a CLIP Text Encode node with your sentence."
        )
    if len(conditioning) > 1:
        raise ValueError(
            f"{node}: '{socket}' combines {len(conditioning)} conditionings, but Imagic learns "
            "from one sentence; connect one CLIP Text Encode node without Conditioning (Combine)."
        )
    tokens, options = conditioning[0]
    for key, remedy in _ENTRY_KEYS_REFUSED.items():
        if options.get(key) is not None:
            raise ValueError(
                f"{node}: '{socket}' carries '{key}', which Imagic cannot learn through; {remedy}."
            )
    if tokens is None or not torch.isfinite(tokens).all():
        raise ValueError(
            f"{node}: '{socket}' has no finite text embedding (found "
            f"{'none' if tokens is None else 'NaN or infinity'}); connect a CLIP Text Encode node "
            "whose CLIP belongs to this model."
        )
    pooled = options.get("pooled_output")
    with torch.inference_mode(False):
        embedding = Embedding(tokens.clone(), None if pooled is None else pooled.clone())
    return Text(embedding, options)


def combine(
    node: str, target: Any, optimized: Any, rule: Callable[[Embedding, Embedding], Embedding]
) -> list[list[Any]]:
    """A CONDITIONING of the target's and the optimised embedding, all else as in the target.

    Raises:
        ValueError: either is not one plain sentence, or they do not match.
    """
    text = read_text(node, "target", target)
    learned = read_text(node, "optimized", optimized)
    try:
        return text.with_embedding(rule(text.embedding, learned.embedding))
    except ValueError as error:
        raise ValueError(
            f"{node}: 'target' and 'optimized' do not match: {error}. Connect to 'target' the "
            "very sentence that Imagic Optimize Embedding got."
        ) from error


def read_image(node: str, model: Any, latent: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Read a LATENT of photographs for ``model``.

    Returns:
        x0 [B, C, ...] scaled as the model wants it, and its mask [B, 1, ...] or None.

    Raises:
        ValueError: it is empty, does not fit the model, or its mask excludes everything.
    """
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(f"{node}: 'image' packs several streams; connect a VAE Encode node.")
    latent_format = model.get_model_object("latent_format")
    with torch.inference_mode(False):
        samples = samples.clone().float()
        if not torch.isfinite(samples).all():
            raise ValueError(
                f"{node}: 'image' contains NaN or infinity; encode it with a VAE in float32 "
                "(start ComfyUI with --fp32-vae)."
            )
        if samples.count_nonzero() == 0:
            raise ValueError(
                f"{node}: 'image' is an empty latent {tuple(samples.shape)}; connect your "
                "photograph: Load Image, then VAE Encode."
            )
        samples = comfy.sample.fix_empty_latent_channels(model, samples)
        if samples.shape[1] != latent_format.latent_channels:
            raise ValueError(
                f"{node}: 'image' has {samples.shape[1]} latent channels, but the model works on "
                f"{latent_format.latent_channels}; encode the photograph with the VAE that "
                "belongs to this model."
            )
        x0 = model.model.process_latent_in(samples)
        mask = latent.get("noise_mask")
        if mask is None:
            return x0, None
        mask = comfy.utils.reshape_mask(mask.clone().float(), x0.shape)[:, :1].clamp(0, 1)
    if not (mask.flatten(1).sum(1) > 0).all():
        raise ValueError(
            f"{node}: the mask of 'image' is empty, so there is nothing to be faithful to; paint "
            "the part to keep, or disconnect the mask."
        )
    return x0, mask


def text_features(node: str, clip: Any, text: str) -> Tensor:
    """The sentence [1, P] in the space that CLIP shares between text and pictures.

    Raises:
        ValueError: the text encoder has no projection into that space.
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
    raise ValueError(
        f"{node}: 'clip' has no text projection (checkpoints of Stable Diffusion 1.5 and Flux "
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
