"""ComfyUI's key names of what stage B learned: what fits a model, and how a file keeps it."""

from __future__ import annotations

import pytest
import torch

LAYER = "diffusion_model.input_blocks.0.0"
SHAPES = {f"{LAYER}.weight": (6, 4, 3, 3), f"{LAYER}.bias": (6,)}


@pytest.fixture(scope="module")
def names(pack):
    """The module that knows them."""
    return pack.nodes.comfy_host.lora


def lora():
    return {
        f"{LAYER}.lora_up.weight": torch.zeros(6, 2),
        f"{LAYER}.lora_down.weight": torch.zeros(2, 36),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }


def test_matrices_are_halved_only_where_nothing_measurable_is_lost(names):
    up, down, tiny = f"{LAYER}.lora_up.weight", "b.lora_down.weight", "c.lora_up.weight"
    weights = {
        up: torch.randn(6, 2),
        down: torch.full((2, 3), 1e5),
        tiny: torch.full((2, 3), 1e-9),
        "d.diff": torch.randn(3, 3),
        "d.alpha": torch.tensor(2.0),
        "e.lora_down.weight": torch.zeros(2, 3),
    }
    kept = names.rounded(weights)
    assert kept[up].dtype == kept["e.lora_down.weight"].dtype == torch.float16
    for key in (down, tiny, "d.diff", "d.alpha"):
        assert kept[key].dtype == torch.float32 and torch.equal(kept[key], weights[key])


def test_weights_that_fit_the_model_pass(names):
    differences = {f"{LAYER}.diff": torch.zeros(6, 4, 3, 3), f"{LAYER}.diff_b": torch.zeros(6)}
    names.check_lora(SHAPES, {**lora(), **differences})


@pytest.mark.parametrize(
    "wrong",
    [
        {f"{LAYER}.lora_up.weight": torch.zeros(7, 2)},
        {f"{LAYER}.lora_down.weight": torch.zeros(2, 35)},
        {f"{LAYER}.lora_down.weight": torch.zeros(3, 36)},
        {f"{LAYER}.lora_up.weight": torch.zeros(6)},
        {f"{LAYER}.alpha": torch.zeros(2)},
        {f"{LAYER}.diff": torch.zeros(6, 4)},
        {f"{LAYER}.diff_b": torch.zeros(5)},
        {"elsewhere.lora_up.weight": torch.zeros(6, 2)},
        {"elsewhere.diff": torch.zeros(6)},
        {"elsewhere.alpha": torch.zeros(())},
        {f"{LAYER}.weight": torch.zeros(6, 4, 3, 3)},
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(names, wrong):
    with pytest.raises(ValueError, match="the model has there"):
        names.check_lora(SHAPES, lora() | wrong)


@pytest.mark.parametrize("missing", ["lora_up.weight", "lora_down.weight"])
def test_half_a_lora_is_refused(names, missing):
    weights = lora()
    del weights[f"{LAYER}.{missing}"]
    with pytest.raises(ValueError):
        names.check_lora(SHAPES, weights)
