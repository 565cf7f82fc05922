"""What a training step holds, in bytes, so that the next change cannot lose it unseen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.alive import Alive

from host import given

MOST = {"full": 1.25, "attention": 1.45, "lora": 3.5}
"""Method -> the most that is made and held at once, in the size of what is trained.

Of `full` and `attention` that is the momentum, and next to it what one layer needs; of `lora` the
momentum, the gradient and its orthogonal turn.
"""


def steps(nodes, model, method, size=1):
    """What two steps made, and how many bytes are trained; ``size`` is that of `Alive`."""
    settings = replace(nodes.core.finetune.METHODS[method], steps=2, batch_size=2)
    with nodes.session(model, given.conditioning(), given.latent(), method) as session:
        with Alive(size) as alive:
            nodes.core.finetune.finetune_model(
                session.denoiser, session.photographs, session.embedding, session.changes,
                settings, lambda _: None,
            )  # fmt: skip
        trained = [p for change in session.changes.values() for p in change.parameters()]
    return alive, sum(p.nbytes for p in trained)


@pytest.mark.parametrize("method", MOST)
def test_no_two_layers_gradients_are_held(nodes, model, method):
    alive, trained = steps(nodes, model, method)
    assert trained < alive.peak < MOST[method] * trained


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_changed_weights_of_any_format_are_made_one_at_a_time(nodes, tiny_checkpoint, stored):
    alive, trained = steps(nodes, given.load(tiny_checkpoint, dtype=stored), "full")
    assert trained < alive.peak < 1.5 * trained


def test_a_low_rank_change_makes_nothing_as_large_as_a_weight(nodes, model):
    """Not forth, not back, not in the optimiser's step."""
    layers = nodes.host.weights.layers(model).values()
    largest = max(layer.weight.nbytes for layer in layers)
    assert not steps(nodes, model, "lora", largest)[0].large
    assert steps(nodes, model, "full", largest)[0].large
