"""What one run of stages A and B leaves: two sentences and the weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .objective import Embedding


@dataclass(frozen=True)
class Sentence:
    """A text as the model reads it.

    Attributes:
        embedding: what is optimised and interpolated of it.
        options: all else that came with it, such as guidance or a picture to inpaint.
        origin: e_tgt, of which stage A made ``embedding``; None where it made nothing. No part of
            an edit: there it is told beside it.
    """

    embedding: Embedding
    options: Mapping[str, Any]
    origin: Embedding | None = None

    def with_embedding(self, embedding: Embedding) -> Sentence:
        """Another embedding, everything else carried through."""
        return replace(self, embedding=embedding)


@dataclass(frozen=True)
class Edit:
    """What one run of stages A and B learned.

    Attributes:
        target: e_tgt.
        optimized: e_opt, of the same widths.
        weights: what stage B learned, key -> tensor.
        about: names, numbers and text in JSON's types, for people to read.
    """

    target: Sentence
    optimized: Sentence
    weights: Mapping[str, Tensor]
    about: Mapping[str, Any]
