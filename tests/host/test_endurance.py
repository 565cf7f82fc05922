"""Edit after edit in one ComfyUI leaves nothing behind. The long form is a benchmark."""

from __future__ import annotations

import pytest
import torch
from benchmarks import endurance


def test_eight_edits_leave_nothing_behind(nodes, model):
    found = list(endurance.edits(model, 8, 2))
    grown = endurance.grown(found)
    assert grown.pop("resident memory", 0) < 50 * endurance.MB
    assert grown == {}


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("tensors", lambda model, held: held.extend(torch.zeros(1) for _ in range(50))),
        ("hooks", lambda model, held: model.model.register_forward_hook(lambda *_: None)),
        ("patchers", lambda model, held: held.append(model.clone())),
        ("resident memory", lambda model, held: held.append(torch.ones(2**27))),
    ],
)
def test_what_is_left_behind_is_seen(nodes, model, name, leak):
    held: list[object] = []
    found = [endurance.there_is(model) for _ in range(endurance.FIRST)]
    hooks = leak(model, held)
    found.append(endurance.there_is(model))
    if hasattr(hooks, "remove"):
        hooks.remove()
    assert name in endurance.grown(found)
