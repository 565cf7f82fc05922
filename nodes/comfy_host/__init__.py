"""The only door to ComfyUI's insides: makes a ``Denoiser`` of a MODEL and undoes all it did.

Data goes one way: a node hands its sockets to this package, gets values and a ``Denoiser`` for
``imagic_core``, and hands the result back through this package.

===============  ========================================================================
``sockets``      CONDITIONING as it comes in, read and checked
``photographs``  LATENT the same, and made smaller where that is asked for
``words``        words that a model embeds by itself, and what it has made of them
``reading``      a sentence as the model reads it
``clip``         CLIP_VISION and CLIP of one space, the former with a gradient
``own_noise``    the noise of a photograph, and a MODEL that begins with it
``denoiser``     the model as a
``trainable``    a loaded model made ready for training, and all of it undone
``changes``      changes of the weights in training
``bypass``       low-rank changes in a MODEL that is sampled
``rounding``     how a changed weight is rounded to its number format
``probe``        its first passes, which tell what is wrong
``wrappers``     what other nodes have put around its passes
``kernels``      kernels with a backward pass
``recompute``    blocks passed once more instead of kept
``in_place``     what is kept of a network that changes it in place
``weights``      which weights can move, and their changes before training
``lora``         LORA_MODEL: what was learned, in the host's key names
``carried``      the same put into a MODEL, found there, and taken out
``identity``     what tells one model from another
``fingerprint``  all that a training's result depends on, as one hash
===============  ========================================================================
"""

from .carried import apply_lora, has_lora, without_lora
from .clip import Clip, ClipVision, seeing, sentences_of_pair
from .denoiser import HostDenoiser, to_device, training_sigmas
from .fingerprint import UntellableError, fingerprint
from .identity import (
    base_hash,
    base_sample,
    context_width,
    distilled_steps,
    is_same_quantised,
    model_kind,
)
from .lora import Lora, changes_to_lora, check_lora, lora_by_part, rounded
from .own_noise import beginning_with, noise_of
from .photographs import read_photographs
from .probe import DoesNotFitError
from .reading import read_by
from .sockets import (
    LOGGER,
    Conditioning,
    Latent,
    Model,
    combine,
    read_sentence,
    to_conditioning,
)
from .trainable import trainable
from .weights import Changes, check_wired, new_changes, weight_shapes
from .words import as_read, is_read

__all__ = [
    "LOGGER",
    "Changes",
    "Clip",
    "ClipVision",
    "Conditioning",
    "DoesNotFitError",
    "HostDenoiser",
    "Latent",
    "Lora",
    "Model",
    "UntellableError",
    "apply_lora",
    "as_read",
    "base_hash",
    "base_sample",
    "beginning_with",
    "changes_to_lora",
    "check_lora",
    "check_wired",
    "combine",
    "context_width",
    "distilled_steps",
    "fingerprint",
    "has_lora",
    "is_read",
    "is_same_quantised",
    "lora_by_part",
    "model_kind",
    "noise_of",
    "new_changes",
    "read_by",
    "read_photographs",
    "read_sentence",
    "rounded",
    "seeing",
    "sentences_of_pair",
    "to_conditioning",
    "to_device",
    "trainable",
    "training_sigmas",
    "weight_shapes",
    "without_lora",
]
