"""What the nodes' faces share: where they are listed, and the widgets of both trainings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..imagic_core.fit import Settings
from . import comfy_host
from .errors import BadInputError
from .train import DTYPES, RECIPES, SAVE_MEMORY

CATEGORY = "Imagic"
TOOLS = "Imagic/tools"


def training_inputs(default: Settings, what: str) -> list[io.Input]:
    """Inputs steps, learning_rate and seed, with the defaults and the subject of the stage."""
    unit = ", as a share of its own size" if default.relative else ""
    return [
        io.Int.Input(
            "steps",
            default=default.steps,
            min=1,
            max=100_000,
            tooltip=f"Training steps of {what}. More steps follow the photograph more closely.",
        ),
        io.Float.Input(
            "learning_rate",
            default=default.learning_rate,
            min=0.0,
            max=1.0,
            step=1e-7,
            round=False,
            tooltip=f"Adam's step size for {what}{unit}. It falls evenly to 0 at the last step. "
            "0 changes nothing.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            # Not randomised after each run: another seed would train again for another eta.
            control_after_generate=False,
            tooltip="Seed of the noise and the timesteps. Same seed and inputs, same result.",
        ),
    ]


def optional_training_inputs(default: Settings, paper: Settings) -> list[io.Input]:
    """Inputs that a user may leave alone; ``paper`` is the stage's recipe in the paper."""
    return [
        io.Combo.Input(
            "recipe",
            options=list(RECIPES),
            default=RECIPES[0],
            optional=True,
            tooltip=f"paper: as the paper trains Stable Diffusion, {paper.steps} steps at "
            f"{paper.learning_rate:g}, one draw each, and of the model all weights; what is set "
            "here is ignored.",
        ),
        io.Int.Input(
            "batch_size",
            default=default.batch_size,
            min=1,
            max=256,
            optional=True,
            tooltip="Draws of noise averaged in each step. More is steadier, slower, and takes no "
            "more memory.",
        ),
        io.Combo.Input(
            "training_dtype",
            options=list(DTYPES),
            default="auto",
            optional=True,
            tooltip="Number format to compute in while training. auto is the model's own, so that "
            "the result is exact when sampled. What is learned is always kept in float32.",
        ),
        io.Combo.Input(
            "save_memory",
            options=list(SAVE_MEMORY),
            default="auto",
            optional=True,
            tooltip="Recompute the model's blocks in the backward pass instead of keeping them: "
            "less memory, about a third slower, same result. auto does so when memory runs out.",
        ),
    ]


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(t, Tensor) for t in value.values())


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list | tuple)
        and len(entry) == 2
        and (entry[0] is None or (isinstance(entry[0], Tensor) and entry[0].ndim == 3))
        and isinstance(entry[1], Mapping)
        for entry in value
    )


def _is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, Mapping) else None
    return isinstance(samples, Tensor) and (samples.is_nested or samples.ndim >= 3)


def _is_losses(value: Any) -> bool:
    losses = value.get("loss") if isinstance(value, Mapping) else None
    return isinstance(losses, list) and all(isinstance(loss, int | float) for loss in losses)


HOLDS: dict[str, Callable[[Any], bool]] = {
    io.Model.io_type: lambda value: isinstance(value, comfy_host.Model),
    io.Conditioning.io_type: _is_conditioning,
    io.Latent.io_type: _is_latent,
    io.LoraModel.io_type: _is_tensors,
    io.LossMap.io_type: _is_losses,
    io.Image.io_type: lambda value: isinstance(value, Tensor) and value.ndim == 4,
}
"""Type of a socket -> whether a value is of it."""

Execute = Callable[..., io.NodeOutput]


def checked(execute: Execute) -> Execute:
    """Decorates ``execute``: what comes in is what the node's face says.

    ComfyUI does not check what comes by a wire of any type, nor whether a number is one at all.

    Raises:
        BadInputError: it is not; the message names the input and what it takes.
    """
    parameters = inspect.signature(execute)

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        given, schema = parameters.bind(cls, *args, **kwargs).arguments, cls.define_schema()
        for face in schema.inputs:
            value = given.get(face.id)
            for one in value if schema.is_input_list and value is not None else [value]:
                if one is not None or not face.optional:
                    _check(face, one)
        return execute(cls, *args, **kwargs)

    return run


def _check(face: io.Input, value: Any) -> None:
    if face.io_type in HOLDS:
        if not HOLDS[face.io_type](value):
            raise BadInputError(
                f"'{face.id}' got {type(value).__name__}, not {face.io_type}; connect it anew. "
                f"{face.tooltip}"
            )
    elif isinstance(face, io.Combo.Input):
        if value not in face.options:
            offered = ", ".join(face.options) or "none yet"
            raise BadInputError(
                f"'{face.id}' is {value!r:.80}; choose one of: {offered:.300}. {face.tooltip}"
            )
    elif isinstance(face, io.Int.Input | io.Float.Input):
        low = -math.inf if face.min is None else face.min
        high = math.inf if face.max is None else face.max
        is_number = isinstance(value, int | float)
        if not is_number or not low <= value <= high or abs(value) == math.inf:
            takes = "a finite number" if high == math.inf else f"a number from {low} to {high}"
            raise BadInputError(f"'{face.id}' is {value!r:.80}; it takes {takes}.")
