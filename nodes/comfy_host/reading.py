"""A sentence as the model reads it: its words embedded by the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from ...imagic_core.edit import Sentence
from .denoiser import encoded
from .probe import REFUSALS
from .sockets import Model, conditioning_entry
from .words import read_as, words


def read_by(model: Model, sentence: Sentence) -> Sentence:
    """The sentence without words, its tokens being what ``model`` makes of it.

    It is itself where it has no words, or the model does not make one embedding of all: the model
    must take both for the same. What does not fit the model is for ``trainable`` to tell.

    Args:
        model: MODEL; it is loaded as for sampling, and left as it is.
        sentence: from ``read_sentence``.
    """
    if not words(sentence):
        return sentence
    with torch.inference_mode(), _loaded(model):
        try:
            taken = _inputs(model, sentence)
            tokens = taken.get("c_crossattn")
            if not isinstance(tokens, Tensor) or _same(tokens, sentence.embedding.tokens):
                return sentence
            with torch.inference_mode(False):
                own = tokens.to(sentence.embedding.tokens.device, torch.float32, copy=True)
            read = read_as(sentence, own)
            return read if _same(taken, _inputs(model, read)) else sentence
        except torch.OutOfMemoryError:
            raise
        except REFUSALS:
            return sentence


@contextmanager
def _loaded(model: Model) -> Iterator[None]:
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    try:
        yield
    finally:
        model.cleanup()


def _inputs(model: Model, sentence: Sentence) -> dict[str, Any]:
    """What the network gets of the sentence when it is sampled, beside a small empty picture."""
    latent_format = model.get_model_object("latent_format")
    empty = torch.zeros(1, latent_format.latent_channels, 8, 8, device=model.load_device)
    noise = comfy.sample.fix_empty_latent_channels(model, empty)
    entry = conditioning_entry(sentence.embedding, sentence.options)
    conds = encoded(model.model, entry, noise, noise, seed=0)["model_conds"]
    return {name: one.cond for name, one in conds.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.float(), other.to(one.device).float())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
