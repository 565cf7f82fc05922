"""Words that a model embeds by itself, and what it has made of them.

Some text encoders give the ids of the sentence's words beside their embedding, and the model makes
one embedding of both. That one is learned: ids have no gradient. What the model made of the target
goes with the learned sentence, for the nodes of stage C have no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...imagic_core.edit import Sentence
from ..errors import BadInputError

READING = "imagic_target"
"""The entry of a learned sentence: what the model made of the target, and a hash of the target."""


def words(sentence: Sentence) -> dict[str, Any]:
    """The ids among its entries, and what belongs to them, such as their weights."""
    kinds = [
        name.removesuffix("ids")
        for name, entry in sentence.options.items()
        if name.endswith("_ids") and isinstance(entry, Tensor) and not entry.is_floating_point()
    ]
    return {k: v for k, v in sentence.options.items() if k.startswith(tuple(kinds))}


def read_as(sentence: Sentence, tokens: Tensor) -> Sentence:
    """The sentence with ``tokens`` [1, T, W], what the model makes of all of it, for its words."""
    options = {**_wordless(sentence), READING: [tokens, _digest(sentence)]}
    return Sentence(replace(sentence.embedding, tokens=tokens), options)


def is_read(sentence: Sentence) -> bool:
    """Whether the model has read it: it comes from ``read_as``, perhaps by a training or a file."""
    return READING in sentence.options


def as_read(target: Sentence, learned: Sentence) -> Sentence:
    """The target as the model has read it before ``learned`` was learned from it.

    One without words is what the model reads, and stays.

    Raises:
        BadInputError: the target is another sentence, of which nobody knows how the model reads it.
    """
    found = words(target)
    match learned.options.get(READING):
        case [Tensor() as tokens, str() as digest] if found:
            if digest == _digest(target):
                embedding = replace(target.embedding, tokens=tokens)
                return Sentence(embedding, _wordless(target))
            raise BadInputError(
                "'target' is not the sentence that 'optimized' was learned from, and its words "
                f"({', '.join(sorted(found))}) are known to the model alone; connect to 'target' "
                "the very sentence that Imagic Optimize Embedding got. For another sentence, save "
                "the edit with Imagic Save Edit and wire the sentence to 'target' of Imagic Load "
                "Edit, which has the model read it."
            )
    return target


def _wordless(sentence: Sentence) -> Mapping[str, Any]:
    # A mask of the tokens is none of those that the model makes of them.
    gone = {*words(sentence), "attention_mask", READING}
    return {key: value for key, value in sentence.options.items() if key not in gone}


def _digest(sentence: Sentence) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted({**words(sentence), "tokens": sentence.embedding.tokens}.items()):
        if isinstance(entry, Tensor):
            data = entry.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)} ".encode())
            digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
