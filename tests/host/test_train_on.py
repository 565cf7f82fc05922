"""A training goes on from what another one has learned, wherever that comes from."""

from __future__ import annotations

import pytest
import torch

from host import given

RATES = {"full": 0.01, "attention": 0.03, "lora": 0.03}


@pytest.fixture(scope="module")
def wires(model):
    return model, given.conditioning(), given.latent()


@pytest.fixture(scope="module", params=RATES)
def learned(request, nodes, wires):
    """Method, MODEL and LORA_MODEL of a first training."""
    method = request.param
    tuned, lora, _ = nodes.finetune(*wires, method, 3, RATES[method], 0, rank=3)
    return method, tuned, lora


def test_it_begins_where_the_other_one_ended(nodes, wires, learned):
    method, tuned, lora = learned
    _, _, begun = nodes.finetune(*wires, method, 1, 0.0, 5)
    # The MODEL itself, with a change of nothing on top: the same draws.
    _, _, ended = nodes.finetune(tuned, *wires[1:], method, 1, 0.0, 5)
    _, again, on = nodes.finetune(*wires, method, 1, 0.0, 5, lora=lora)
    assert on["loss"] == pytest.approx(ended["loss"], rel=1e-5)
    assert abs(ended["loss"][0] - begun["loss"][0]) > 1e-3 * begun["loss"][0]
    assert again.keys() == lora.keys()
    for key in lora:
        torch.testing.assert_close(again[key], lora[key], rtol=0, atol=0)


def test_what_the_model_has_already_is_not_added_again(nodes, wires, learned):
    method, tuned, lora = learned
    plain, there = (
        nodes.finetune(model, *wires[1:], method, 2, RATES[method], 5, lora=lora)
        for model in (wires[0], tuned)
    )
    assert there[2] == plain[2]
    losses = [nodes.sampled_loss(tuned, *wires[1:], 4, "noise") for tuned in (plain[0], there[0])]
    assert losses[0] == losses[1] == pytest.approx(
        nodes.sampled_loss(
            nodes.call("ImagicFinetuneStrength", wires[0], plain[1], 1.0, 1.0, 1.0)[0],
            *wires[1:], 4, "noise",
        ),
        rel=1e-6,
    )  # fmt: skip
    assert plain[2]["loss"][1] != pytest.approx(plain[2]["loss"][0], rel=1e-6)


def test_alpha_counts(nodes, wires):
    _, lora, _ = nodes.finetune(*wires, "lora", 2, RATES["lora"], 0, rank=2)
    halved = {k: t / 2 if k.endswith(".alpha") else t for k, t in lora.items()}
    doubled = {k: 2 * t if k.endswith("lora_down.weight") else t for k, t in halved.items()}
    losses = [
        nodes.finetune(*wires, "lora", 1, 0.0, 5, lora=one)[2]["loss"]
        for one in (lora, doubled, halved)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)


def test_what_was_learned_by_another_method_is_refused(nodes, wires):
    _, lora, _ = nodes.finetune(*wires, "lora", 1, 0.03, 0, rank=2)
    _, whole, _ = nodes.finetune(*wires, "full", 1, 0.01, 0)
    for method, wrong in (("full", lora), ("lora", whole), ("attention", whole)):
        with pytest.raises(ValueError, match="Fine-tune Model: 'lora' changes .* method"):
            nodes.finetune(*wires, method, 1, 0.01, 0, lora=wrong)


def test_another_models_and_several_ranks_are_refused(nodes, wires):
    _, lora, _ = nodes.finetune(*wires, "lora", 1, 0.03, 0, rank=2)
    with pytest.raises(ValueError, match="'lora' has 'elsewhere.*connect the kind of model"):
        nodes.finetune(*wires, "lora", 1, 0.01, 0, lora={"elsewhere.diff": torch.zeros(2)})
    key = next(k for k in lora if k.endswith("lora_down.weight"))
    up = key.replace("lora_down", "lora_up")
    mixed = {**lora, key: lora[key][:1], up: lora[up][:, :1]}
    with pytest.raises(ValueError, match="'lora' has the ranks 1, 2"):
        nodes.finetune(*wires, "lora", 1, 0.01, 0, lora=mixed)
