"""Stage C, section 3.2 "Text embedding interpolation", equation 4."""

from __future__ import annotations

from .objective import Embedding


def interpolate(target: Embedding, optimized: Embedding, eta: float) -> Embedding:
    """Equation 4: e = eta * e_tgt + (1 - eta) * e_opt, for the tokens and the pooled vector.

    Args:
        target: e_tgt.
        optimized: e_opt, of the same shapes.
        eta: 0 reconstructs the photograph, 1 follows the text alone; 0.6 to 0.8 is usually best.
            Values outside 0 to 1 extrapolate.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [[tuple(t.shape) for t in e.tensors()] for e in (target, optimized)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"target has the shape {shapes[0]} and optimized {shapes[1]}")
    return Embedding(
        *(
            eta * tgt + (1 - eta) * opt.to(tgt)
            for tgt, opt in zip(target.tensors(), optimized.tensors(), strict=True)
        )
    )
