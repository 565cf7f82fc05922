"""What fine-tuning leaves of the sentence, which no loss tells.

The more a model is moved, the more it draws the photograph whatever it is told: the loss looks best
just when the edit is gone at every eta. So the predictions for e_opt and for e_tgt are compared,
at the same noise: how far apart they are says how much the model still does what the sentence says.
"""

from __future__ import annotations

import torch

from .objective import Denoiser, Embedding, Photographs, append_dims, draw

LITTLE = 0.6
"""Below this share of the distance as loaded, edits were lost on networks of two widths."""
_DRAWS = 4


@torch.no_grad()
def apart(
    denoiser: Denoiser,
    photographs: Photographs,
    one: Embedding,
    other: Embedding,
    *,
    seed: int,
    at_once: int,
) -> float:
    """How far apart the network's outputs are for two sentences, the root of the mean square.

    Args:
        denoiser: the model.
        photographs: x; where it is masked counts, too.
        one: e_opt.
        other: e_tgt, of the same shapes.
        seed: of (t, eps), which are the same for both and in every call.
        at_once: how many of the draws pass together.
    """
    generator, total = torch.Generator().manual_seed(seed), 0.0
    draws = draw(denoiser.sigmas, photographs, _DRAWS, generator, stratified=True)
    for part in draws.split(at_once):
        x0 = photographs.x0[part.photo]
        x_t = denoiser.add_noise(x0, part.noise, part.sigma)
        first, second = (denoiser.predict(x_t, part.sigma, e) for e in (one, other))
        moved = (first - second) / append_dims(denoiser.output_scale(part.sigma), x0)
        total += moved.square().flatten(1).mean(1).sum().item()
    return (total / _DRAWS) ** 0.5
