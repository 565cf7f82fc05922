"""What comes in over a node's inputs is what its face says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import comfy_host
from .errors import BadInputError


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
    io.Clip.io_type: lambda value: isinstance(value, comfy_host.Clip),
    io.ClipVision.io_type: lambda value: isinstance(value, comfy_host.ClipVision),
}
"""Type of a socket -> whether a value is of it."""

Execute = Callable[..., io.NodeOutput]


def checked(*, but: str = "") -> Callable[[Execute], Execute]:
    """Decorates ``execute``: what comes in is what the node's face says.

    Args:
        but: the input of which ``execute`` itself has more to say.

    ComfyUI does not check what comes by a wire of any type, nor whether a number is one at all.

    Raises:
        BadInputError: it is not; the message names the input and what it takes.
    """

    def decorate(execute: Execute) -> Execute:
        parameters = inspect.signature(execute)

        @wraps(execute)
        def run(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
            bound, schema = parameters.bind(cls, *args, **kwargs), cls.define_schema()
            given = bound.arguments
            for face in schema.inputs:
                if face.id not in given:
                    continue
                values = (given[face.id] or []) if schema.is_input_list else [given[face.id]]
                if face.optional and all(one is None for one in values):
                    # A node before it put nothing out, as if the socket were not wired.
                    given[face.id] = None
                    continue
                if not values:
                    raise BadInputError(f"'{face.id}' got nothing. {face.tooltip}")
                for one in values if face.id != but else ():
                    _check(face, one)
            return execute(*bound.args, **bound.kwargs)

        return run

    return decorate


def _check(face: io.Input, value: Any) -> None:
    if face.io_type in HOLDS:
        if not HOLDS[face.io_type](value):
            raise BadInputError(
                f"'{face.id}' got {type(value).__name__}, not {face.io_type}; connect it anew. "
                f"{face.tooltip}"
            )
        if face.io_type == io.Image.io_type and not value.numel():
            raise BadInputError(
                f"'{face.id}' is {tuple(value.shape)}, no picture at all. {face.tooltip}"
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
