"""What comes in over the sockets, read and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...imagic_core.edit import Sentence
from ...imagic_core.interpolate import common_length, lengthened
from ...imagic_core.objective import Embedding
from ..errors import BadInputError
from .words import as_read

LOGGER = logging.getLogger("comfyui-imagic")
"""ComfyUI's console."""

Model = ModelPatcher
"""MODEL."""

Conditioning = list[list[Any]]
"""CONDITIONING: entries [tokens [1, T, W], options], of which ``pooled_output`` is [1, P] and
``conditioning_*`` what further text encoders gave."""

Latent = Mapping[str, Any]
"""LATENT: ``samples`` [B, C, ...] and perhaps ``noise_mask``."""

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


_ORIGIN = "imagic_origin"
"""The entry of a learned sentence with the tensors of e_tgt, which the host does not look at."""


def read_sentence(socket: str, conditioning: Conditioning) -> Sentence:
    """Read the CONDITIONING of ``socket``, which must be one plain sentence.

    Raises:
        BadInputError: it holds several entries, or something that cannot be optimised.
    """
    if not conditioning:
        raise BadInputError(
            f"'{socket}' is empty; connect a CLIP Text Encode node with your sentence."
        )
    if len(conditioning) > 1:
        raise BadInputError(
            f"'{socket}' combines {len(conditioning)} conditionings, but Imagic learns "
            "from one sentence; connect one CLIP Text Encode node without Conditioning (Combine)."
        )
    tokens, entries = conditioning[0]
    for key, remedy in _ENTRY_KEYS_REFUSED.items():
        if entries.get(key) is not None:
            raise BadInputError(
                f"'{socket}' carries '{key}', which Imagic cannot learn through; {remedy}."
            )
    more = [name for name in sorted(entries) if _is_text(name, entries[name])]
    texts = (tokens, *(entries[name] for name in more))
    nothing = tokens is None or not tokens.numel()
    if nothing or not all(torch.isfinite(text).all() for text in texts):
        raise BadInputError(
            f"'{socket}' has no finite text embedding (found "
            f"{'none' if nothing else 'NaN or infinity'}); connect a CLIP Text Encode node "
            "whose CLIP belongs to this model."
        )
    pooled = entries.get("pooled_output")
    if pooled is not None and not torch.isfinite(pooled).all():
        raise BadInputError(
            f"'{socket}' has NaN or infinity in its pooled vector; connect a CLIP Text Encode "
            "node whose CLIP belongs to this model."
        )
    with torch.inference_mode(False):
        embedding = Embedding(
            tokens.clone(),
            None if pooled is None else pooled.clone(),
            {name: entries[name].clone() for name in more},
        )
    options = {k: v for k, v in entries.items() if k not in ("pooled_output", _ORIGIN, *more)}
    return Sentence(embedding, options, _origin(embedding, entries.get(_ORIGIN)))


def _origin(embedding: Embedding, tensors: Any) -> Embedding | None:
    """From the entry of that name; None where the sentence is no longer what was learned."""
    own = embedding.named()
    if not isinstance(tensors, Mapping) or tensors.keys() != own.keys():
        return None
    if any(tensors[name].shape != tensor.shape for name, tensor in own.items()):
        return None
    with torch.inference_mode(False):
        return embedding.with_tensors([tensors[name].clone() for name in own])


def _is_text(name: str, entry: Any) -> bool:
    """Whether an entry is a further embedding of the sentence, and not a picture or a number.

    The model cannot tell, for all of them change what it predicts; the host's text encoders name
    what they give beside the tokens `conditioning_ENCODER`.
    """
    is_tensor = isinstance(entry, Tensor) and entry.is_floating_point() and entry.ndim >= 2
    return is_tensor and name.startswith("conditioning_")


def conditioning_entry(embedding: Embedding, options: Mapping[str, Any]) -> list[Any]:
    """An entry of a CONDITIONING."""
    return [
        embedding.tokens,
        {**options, "pooled_output": embedding.pooled, **embedding.more},
    ]


def to_conditioning(sentence: Sentence) -> Conditioning:
    """The sentence as a CONDITIONING."""
    origin = {} if sentence.origin is None else {_ORIGIN: dict(sentence.origin.named())}
    return [conditioning_entry(sentence.embedding, {**sentence.options, **origin})]


def combine(
    target: Conditioning,
    optimized: Conditioning,
    rule: Callable[[Embedding, Embedding], Embedding],
) -> Conditioning:
    """A CONDITIONING of the target's and the optimised embedding, all else as in the target.

    Raises:
        BadInputError: either is not one plain sentence, or they do not match.
    """
    learned = read_sentence("optimized", optimized)
    sentence = as_read(read_sentence("target", target), learned)
    sentence, learned = same_length(sentence, learned)
    try:
        embedding = rule(sentence.embedding, learned.embedding)
    except ValueError as error:
        raise BadInputError(
            f"'target' and 'optimized' do not match: {error}. Connect to 'target' the very "
            "sentence that Imagic Optimize Embedding got."
        ) from error
    return to_conditioning(sentence.with_embedding(embedding))


def same_length(target: Sentence, optimized: Sentence) -> tuple[Sentence, Sentence]:
    """Both sentences with the same number of tokens; see ``lengthened``. Says so in the console.

    A token counts where it counts in either: the target's attention mask follows.
    """
    counts = [s.embedding.tokens.shape[1] for s in (target, optimized)]
    if counts[0] == counts[1]:
        return target, optimized
    length = common_length(*counts)
    LOGGER.info("'target' has %d tokens and 'optimized' %d: both continued to %d", *counts, length)
    masks = [_attention_mask(s, length) for s in (target, optimized)]
    options = {key: value for key, value in target.options.items() if key != "attention_mask"}
    if masks[0] is not None and masks[1] is not None:
        options["attention_mask"] = torch.maximum(masks[0], masks[1].to(masks[0]))
    first, second = (
        replace(s.embedding, tokens=lengthened(s.embedding.tokens, length))
        for s in (target, optimized)
    )
    return Sentence(first, options), optimized.with_embedding(second)


def _attention_mask(sentence: Sentence, length: int) -> Tensor | None:
    """Its mask [1, T] of the tokens that count, continued with it; None where all do."""
    mask = sentence.options.get("attention_mask")
    if mask is None or mask.shape[1:] != sentence.embedding.tokens.shape[1:2]:
        return None
    return lengthened(mask, length)
