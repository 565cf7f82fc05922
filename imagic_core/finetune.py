"""Stage B, section 3.2 "Model fine-tuning": e_opt fixed, minimise equation 3 over theta.

The weights themselves stay as they are. What is trained are changes of them, see ``changes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .changes import Difference, LowRank, is_product
from .checkpoint import Keeper
from .fit import Progress, Settings, fit
from .objective import Denoiser, Embedding, Photographs, draw, reconstruction_loss
from .relative import RelativeSteps

_SHORT = Settings(
    steps=60,  # of several draws each: a sixth of the paper's
    learning_rate=6e-2,
    seed=0,
    batch_size=4,
    stratified=True,  # lowers the variance of the gradient by a quarter
    decay=True,  # comes to rest, instead of where the last draws kicked it
    relative=True,  # one rate for every network
)
METHODS = {
    "lora": _SHORT,
    "attention": replace(_SHORT, learning_rate=1e-2),
    "full": replace(_SHORT, learning_rate=3e-3),
}
"""Which weights can move, and the settings that each starts from."""

FAST, FAST_METHOD = replace(_SHORT, steps=30, learning_rate=9e-2, batch_size=2), "lora"
"""For a first look: with stage A's, a twentieth of the paper's draws."""

PAPER, PAPER_METHOD = Settings(steps=1500, learning_rate=5e-7, seed=0), "full"
"""The paper's recipe for Stable Diffusion, section 4."""


def choose_changes(
    method: str,
    layers: Mapping[str, torch.nn.Module],
    low_rank: Callable[[torch.nn.Module], LowRank],
) -> dict[str, Difference | LowRank]:
    """Choose what moves, and how.

    Args:
        method: `full` moves every weight and bias, `attention` those of the attention layers,
            `lora` every matrix and convolution through a low-rank change.
        layers: name -> layer with ``weight`` and perhaps ``bias``, all that can be moved.
        low_rank: makes the low-rank change of one layer.

    Returns:
        Name of the weight or bias -> its change.

    Raises:
        ValueError: unknown method, or the model has no weight that the method moves.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    changes: dict[str, Difference | LowRank] = {}
    for name, layer in layers.items():
        if method == "lora":
            if is_product(layer):
                changes[f"{name}.weight"] = low_rank(layer)
        elif method == "full" or "attn" in name or "attention" in name:
            for part in ("weight", "bias"):
                if getattr(layer, part, None) is not None:
                    changes[f"{name}.{part}"] = Difference(getattr(layer, part))
    if not changes:
        raise ValueError(f"the model has no weights that method {method!r} could move")
    return changes


def finetune_model(
    denoiser: Denoiser,
    photographs: Photographs,
    optimized: Embedding,
    changes: Mapping[str, Difference | LowRank],
    settings: Settings,
    on_step: Callable[[Progress], None],
    keeper: Keeper | None = None,
) -> list[float]:
    """Fit the changes of the weights to the photograph, in place.

    Args:
        denoiser: the model, with ``changes`` applied to its weights.
        photographs: x, and where to be faithful to it.
        optimized: e_opt of stage A, held fixed.
        changes: from ``choose_changes``, as they are made.
        settings: the paper's are ``PAPER``.
        on_step: called after each step; what it raises ends the training and passes through.
        keeper: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    optimiser: torch.optim.Optimizer
    if settings.relative:
        optimiser = _relative_steps(denoiser, photographs, optimized, changes, settings)
    else:
        parameters = [p for change in changes.values() for p in change.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    return fit(denoiser, photographs, lambda: optimized, optimiser, settings, on_step, keeper)


@torch.no_grad()
def _relative_steps(
    denoiser: Denoiser,
    photographs: Photographs,
    optimized: Embedding,
    changes: Mapping[str, Difference | LowRank],
    settings: Settings,
) -> RelativeSteps:
    """The optimiser, after a look at what each layer makes of the photograph.

    A step of ``out`` turns what ``down`` has taken up, a step of ``down`` takes up more: with
    lengths left as they are by the first, the second counts in the size of the layer.
    """
    low_rank = [change for change in changes.values() if isinstance(change, LowRank)]
    passed = [change.measure() for change in low_rank]
    if low_rank:
        generator = torch.Generator().manual_seed(settings.seed)
        draws = draw(denoiser.sigmas, photographs, 4, generator, stratified=True)
        for part in draws.split(settings.micro_batch):
            reconstruction_loss(denoiser, photographs, optimized, part)
    thin: list[tuple[Tensor, float]] = []
    for change, energies in zip(low_rank, passed, strict=True):
        taken, made = energies.tolist()
        thin += [(change.out, 1.0), (change.down, (made / taken) ** 0.5 if taken and made else 1.0)]
        change.passed = None
    whole = [(c.moved, c.size) for c in changes.values() if isinstance(c, Difference)]
    at_once = denoiser.compute_dtype != torch.float16
    return RelativeSteps(thin, whole, settings.learning_rate, at_once=at_once)
