"""A training between two of its steps: what the next one depends on, to be kept and given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """All that a training's next step depends on, in what any file can hold.

    Attributes:
        tensors: name -> tensor.
        about: the rest in JSON's types; {"tensor": NAME} stands where a tensor belongs.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


class Training:
    """What changes from step to step.

    Attributes:
        losses: of the steps that are done.
        is_moving: whether the optimiser is changing it.
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        generator: torch.Generator,
    ) -> None:
        """Take the parts before the first step; the optimiser has the parameters."""
        self.optimiser, self.scaler, self.generator = optimiser, scaler, generator
        self.losses: list[float] = []
        self.is_moving = False
        self._drawn = generator.get_state()

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the optimiser's order."""
        return [leaf for group in self.optimiser.param_groups for leaf in group["params"]]

    @property
    def is_whole(self) -> bool:
        """Whether all of it is of the same step."""
        return not self.is_moving and not getattr(self.optimiser, "is_within_step", False)

    def step(self, loss: float) -> None:
        """Let the optimiser make its step; ``loss`` is that of the step, before its change."""
        self.is_moving = True
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.losses.append(loss)
        self._drawn = self.generator.get_state()
        self.is_moving = False

    def take(self) -> Checkpoint:
        """It after its last whole step, also in the middle of the next one.

        The tensors are those that the next step changes.

        Raises:
            ValueError: the last step broke off within its change.
        """
        if not self.is_whole:
            raise ValueError("the optimiser broke off in the middle of a step")
        tensors = {f"parameter.{i}": leaf.detach() for i, leaf in enumerate(self.parameters)}
        tensors["generator"] = self._drawn
        about = {
            "losses": list(self.losses),
            "optimiser": _packed(self.optimiser.state_dict(), tensors, "optimiser"),
            "scaler": _packed(self.scaler.state_dict(), tensors, "scaler"),
        }
        return Checkpoint(tensors, about)

    def give(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of a training of the same settings, which is used up by that.

        Raises:
            ValueError: it is of another training, or damaged; this one is as it was.
        """
        tensors, about = checkpoint.tensors, checkpoint.about
        try:
            given = [tensors[f"parameter.{i}"] for i in range(len(self.parameters))]
            losses = [float(loss) for loss in about["losses"]]
            optimiser = _unpacked(about["optimiser"], tensors)
            scaler = _unpacked(about["scaler"], tensors)
            shapes = [[tuple(t.shape) for t in part] for part in (given, self.parameters)]
            if shapes[0] != shapes[1]:
                raise ValueError("its parameters have other shapes")
            torch.Generator().set_state(tensors["generator"])
            self.scaler.load_state_dict(scaler)
            self.optimiser.load_state_dict(optimiser)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"it lacks what this training needs: {error}") from error
        with torch.no_grad():
            for leaf, value in zip(self.parameters, given, strict=True):
                leaf.copy_(value)
        self.generator.set_state(tensors["generator"])
        self._drawn = self.generator.get_state()
        self.losses = losses


class Keeper:
    """Is told of a training, so that it may keep it and give it back. This one does neither."""

    def begin(self, training: Training) -> None:
        """Before the first step: may give the training what was kept."""

    def stepped(self, training: Training) -> None:
        """After each step, before it is reported."""


def _packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):  # JSON would make text of its numbers
        return {"dict": [[k, _packed(v, tensors, f"{name}.{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_packed(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_unpacked(v, tensors) for v in inner)
    return {key: _unpacked(v, tensors) for key, v in inner}
