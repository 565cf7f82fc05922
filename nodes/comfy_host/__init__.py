"""The only door to ComfyUI's insides: makes a ``Denoiser`` of a MODEL and undoes all it did.

Data goes one way: a node hands its sockets to this package, gets values and a ``Denoiser`` for
``imagic_core``, and hands the result back through this package.

=============  ============================================================================
``sockets``    CONDITIONING, LATENT and CLIP as they come in, read and checked
``denoiser``   the model as a ``Denoiser``
``trainable``  a loaded model made ready for training, and all of it undone
``weights``    which weights can move, and their changes before training
``lora``       LORA_MODEL: what was learned, in the host's key names
``identity``   what tells one model from another
=============  ============================================================================
"""

from .denoiser import HostDenoiser, to_device
from .identity import base_hash, base_sample, context_width, is_same_quantised, model_kind
from .lora import (
    Lora,
    apply_lora,
    changes_to_lora,
    check_lora,
    has_lora,
    lora_by_part,
    rounded,
    without_lora,
)
from .sockets import (
    LOGGER,
    Conditioning,
    Latent,
    Model,
    combine,
    read_photographs,
    read_sentence,
    text_features,
    to_conditioning,
)
from .trainable import check_trainable, trainable
from .weights import new_changes, weight_shapes

__all__ = [
    "LOGGER",
    "Conditioning",
    "HostDenoiser",
    "Latent",
    "Lora",
    "Model",
    "apply_lora",
    "base_hash",
    "base_sample",
    "changes_to_lora",
    "check_lora",
    "check_trainable",
    "combine",
    "context_width",
    "has_lora",
    "is_same_quantised",
    "lora_by_part",
    "model_kind",
    "new_changes",
    "read_photographs",
    "read_sentence",
    "rounded",
    "text_features",
    "to_conditioning",
    "to_device",
    "trainable",
    "weight_shapes",
    "without_lora",
]
