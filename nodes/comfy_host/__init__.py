"""The only door to ComfyUI's insides: makes a ``Denoiser`` of a MODEL and undoes all it did.

Data goes one way: a node hands its sockets to this package, gets tensors and a ``Denoiser`` for
``imagic_core``, and hands the result back through this package.

=============  ============================================================================
``sockets``    MODEL, CONDITIONING, LATENT and CLIP as they come in, read and checked
``denoiser``   the model as a ``Denoiser``
``training``   a loaded model made ready for training, and all of it undone
``weights``    what can move, what is handed back, and what tells models apart
=============  ============================================================================
"""

import logging

from .denoiser import HostDenoiser, to_device
from .sockets import Text, combine, read_image, read_text, text_features
from .training import check_trainable, training
from .weights import (
    apply_lora,
    base_hash,
    changes_to_lora,
    check_lora,
    context_width,
    has_lora,
    lora_by_part,
    model_kind,
    new_changes,
    weight_shapes,
)

LOGGER = logging.getLogger("comfyui-imagic")
"""ComfyUI's console."""

__all__ = [
    "LOGGER",
    "HostDenoiser",
    "Text",
    "apply_lora",
    "base_hash",
    "changes_to_lora",
    "check_lora",
    "check_trainable",
    "combine",
    "context_width",
    "has_lora",
    "lora_by_part",
    "model_kind",
    "new_changes",
    "read_image",
    "read_text",
    "text_features",
    "to_device",
    "training",
    "weight_shapes",
]
