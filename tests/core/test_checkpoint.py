"""A training that was broken off and given back ends bit by bit as one that was not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from core.test_stages import SETTINGS, Weighted, gain_changes, ignore
from core.toy import ToyDenoiser, photograph, sentence
from imagic_core.checkpoint import Checkpoint, Keeper, Training
from imagic_core.embedding import optimize_embedding
from imagic_core.finetune import finetune_model
from imagic_core.relative import RelativeSteps

STEPS = 6


class _Stop(Exception):
    """Stands for a cancelled training."""


class Held(Keeper):
    """Goes on from ``checkpoint``, and holds what the training is like after step ``until``."""

    def __init__(self, checkpoint: Checkpoint | None = None, until: int = 0) -> None:
        self.checkpoint, self.until = checkpoint, until
        self.training: Training | None = None

    def begin(self, training: Training) -> None:
        self.training = training
        if self.checkpoint:
            training.give(self.checkpoint)

    def stepped(self, training: Training) -> None:
        if len(training.losses) == self.until:
            raise _Stop


def through_a_file(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(load(save(tensors)), json.loads(json.dumps(checkpoint.about)))


def stage_a(keeper: Keeper, denoiser: ToyDenoiser | None = None):
    settings = replace(SETTINGS, steps=STEPS, decay=True, stratified=True)
    e, losses = optimize_embedding(
        denoiser or ToyDenoiser(), photograph(2), sentence(), settings, ignore, keeper
    )
    return [*e.tensors(), torch.tensor(losses)]


def stage_b(keeper: Keeper, relative: bool = False):
    changes = gain_changes()
    losses = finetune_model(
        Weighted(changes), photograph(2), sentence(), changes,
        replace(SETTINGS, steps=STEPS, relative=relative), ignore, keeper,
    )  # fmt: skip
    return [changes["gain.weight"].difference.detach(), torch.tensor(losses)]


def stage_b_in_relative_steps(keeper: Keeper):
    return stage_b(keeper, relative=True)


@pytest.mark.parametrize("stage", [stage_a, stage_b, stage_b_in_relative_steps])
@pytest.mark.parametrize("until", range(1, STEPS + 1))
def test_what_was_broken_off_ends_as_what_was_not(stage, until) -> None:
    whole = stage(Keeper())
    first = Held(until=until)
    with pytest.raises(_Stop):
        stage(first)
    kept = through_a_file(first.training.take())
    resumed = stage(Held(kept))
    assert len(whole[-1]) == STEPS
    for a, b in zip(resumed, whole, strict=True):
        assert torch.equal(a, b)


def test_in_the_middle_of_a_step_it_is_what_it_was_after_the_last_one() -> None:
    class Failing(ToyDenoiser):
        def predict(self, *args):
            if len(self.calls) == 3:
                raise _Stop
            return super().predict(*args)

    first = Held()
    with pytest.raises(_Stop):
        stage_a(first, Failing())
    kept = through_a_file(first.training.take())
    assert len(kept.about["losses"]) == 3
    for a, b in zip(stage_a(Held(kept)), stage_a(Keeper()), strict=True):
        assert torch.equal(a, b)


def a_training(kind, scaler: bool = True, size: int = 5, **how) -> Training:
    leaf = torch.nn.Parameter(torch.linspace(-1, 1, size))
    return Training(
        kind([{"params": [leaf], "lr": 0.1}], **how),
        torch.amp.GradScaler("cpu", enabled=scaler),
        torch.Generator().manual_seed(3),
    )


def go_on(training: Training, steps: int) -> torch.Tensor:
    (leaf,) = training.parameters
    for _ in range(steps):
        noise = torch.randn(len(leaf), generator=training.generator)
        loss = ((leaf - noise) ** 2).sum()
        training.scaler.scale(loss).backward()
        training.step(loss.item())
    return leaf.detach()


class Nested(torch.optim.Optimizer):
    """Keeps lists, tuples, numbers and tensors of other shapes and kinds than its parameters."""

    def __init__(self, groups) -> None:
        super().__init__(groups, {"pair": (0.5, 2)})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            assert isinstance(group["pair"], tuple)
            for leaf in group["params"]:
                state = self.state[leaf]
                count, (rows, name) = state.get("all", [0, ({7: torch.zeros(2, 3)}, None)])
                rows[7] = rows[7] + leaf.grad.sum() * group["pair"][0]
                state["all"] = [count + 1, (rows, name)]
                with torch.no_grad():
                    leaf -= group["lr"] / state["all"][0] * rows[7].mean()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
        (Nested, {}),
    ],
)
@pytest.mark.parametrize("scaler", [False, True])
def test_every_optimiser_goes_on_as_it_was(kind, how, scaler) -> None:
    whole = go_on(a_training(kind, scaler, **how), 7)
    first, second = (a_training(kind, scaler, **how) for _ in range(2))
    go_on(first, 3)
    second.give(through_a_file(first.take()))
    assert torch.equal(go_on(second, 4), whole)
    assert len(second.losses) == 7


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: Checkpoint({}, c.about),
        lambda c: Checkpoint(c.tensors, {}),
        lambda c: Checkpoint({**c.tensors, "parameter.0": torch.zeros(4)}, c.about),
        lambda c: Checkpoint({**c.tensors, "generator": torch.zeros(3)}, c.about),
        lambda c: Checkpoint(c.tensors, {**c.about, "losses": None}),
        lambda c: Checkpoint(c.tensors, {**c.about, "optimiser": {"tensor": "none"}}),
        lambda c: Checkpoint(c.tensors, {**c.about, "optimiser": {"dict": []}}),
        lambda c: Checkpoint(c.tensors, {**c.about, "optimiser": {"a": 1, "b": 2}}),
    ],
)
def test_what_is_damaged_is_refused_and_changes_nothing(damage) -> None:
    first, second = (a_training(torch.optim.Adam) for _ in range(2))
    go_on(first, 3)
    with pytest.raises(ValueError, match="."):
        second.give(damage(through_a_file(first.take())))
    assert torch.equal(go_on(second, 2), go_on(a_training(torch.optim.Adam), 2))


def test_what_broke_off_within_the_optimiser_is_not_taken() -> None:
    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            raise _Stop

    training = a_training(Breaking)
    with pytest.raises(_Stop):
        go_on(training, 1)
    with pytest.raises(ValueError, match="middle of a step"):
        training.take()


def test_a_step_whose_gradients_have_come_in_part_is_not_whole() -> None:
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    optimiser = RelativeSteps([], [(weight, 1.0) for weight in weights], 0.1, at_once=True)
    scaler, generator = torch.amp.GradScaler("cpu", enabled=False), torch.Generator()
    training = Training(optimiser, scaler, generator)
    assert training.is_whole
    weights[0].sum().backward()
    assert weights[0].grad is None and not training.is_whole
    with pytest.raises(ValueError, match="in the middle of a step"):
        training.take()
    training.step(1.0)
    assert training.is_whole and training.take().about["losses"] == [1.0]
    assert (weights[0] < 1.0).all() and torch.equal(weights[1], torch.ones(2, 3))
