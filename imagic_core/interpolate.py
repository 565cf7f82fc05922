"""Stage C, section 3.2 "Text embedding interpolation", equation 4, and projection beside it."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import torch
from torch import Tensor

from .objective import Embedding

CLIP_SECTION = 77
"""Tokens that CLIP reads at once; of a longer text the embeddings follow one another."""


def common_length(first: int, second: int) -> int:
    """The number of tokens to which ``lengthened`` brings two sentences of these numbers."""
    in_sections = first % CLIP_SECTION == second % CLIP_SECTION == 0
    return lcm(first, second) if in_sections else max(first, second)


def lengthened(tokens: Tensor, length: int) -> Tensor:
    """A sentence [1, T, ...] continued to ``length`` tokens.

    CLIP's sections are repeated, as the host does to batch prompts of different lengths: cross
    attention takes a mean over the tokens, which repetition leaves as it is. Other text is
    continued by its last token, which is padding where the encoder pads, else the end mark.

    Args:
        tokens: the embedding, or anything else that has an entry for each token.
        length: from ``common_length``.
    """
    count = tokens.shape[1]
    if count % CLIP_SECTION == length % CLIP_SECTION == 0 and length % count == 0:
        return torch.cat([tokens] * (length // count), 1)
    return torch.cat([tokens, *[tokens[:, -1:]] * (length - count)], 1)


def interpolate(target: Embedding, optimized: Embedding, eta: float) -> Embedding:
    """Equation 4: e = eta * e_tgt + (1 - eta) * e_opt, for each tensor of the embedding.

    Args:
        target: e_tgt.
        optimized: e_opt, of the same shapes.
        eta: 0 reconstructs the photograph, 1 follows the text alone; 0.6 to 0.8 is usually best.
            Values outside 0 to 1 extrapolate.

    Raises:
        ValueError: the shapes differ.
    """
    return _combine(target, optimized, lambda tgt, opt: eta * tgt + (1 - eta) * opt)


def project(target: Embedding, optimized: Embedding, identity: float, edit: float) -> Embedding:
    """Identity and edit strength apart: e = identity * e_opt + edit * (e_tgt orthogonal to e_opt).

    Each token, and each other vector, is split by itself: what of the target's vector lies along
    the optimised one says nothing new, and what is orthogonal to it is the edit. This is the
    vector projection of Forgedit (Zhang et al., 2023), not of the paper.

    Args:
        target: e_tgt.
        optimized: e_opt, of the same shapes.
        identity: strength of the photograph; 1 keeps e_opt as it was learned.
        edit: strength of the edit; 0 reconstructs the photograph.

    Raises:
        ValueError: the shapes differ.
    """

    def split(tgt: Tensor, opt: Tensor) -> Tensor:
        length = (opt * opt).sum(-1, keepdim=True).clamp(min=1e-12)
        along = (tgt * opt).sum(-1, keepdim=True) / length * opt
        return identity * opt + edit * (tgt - along)

    return _combine(target, optimized, split)


def _combine(
    target: Embedding, optimized: Embedding, rule: Callable[[Tensor, Tensor], Tensor]
) -> Embedding:
    shapes = [{n: tuple(t.shape) for n, t in e.named().items()} for e in (target, optimized)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"target has the shapes {shapes[0]} and optimized {shapes[1]}")
    learned = optimized.named()
    return target.with_tensors(
        rule(tensor, learned[name].to(tensor)) for name, tensor in target.named().items()
    )
