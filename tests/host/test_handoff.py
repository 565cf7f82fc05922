"""Exact hand-off: the returned MODEL, sampled by the host, has the loss of the training's end.

Measured on the smallest network that the host has in every number format, a flow transformer, and
once on the U-Net of Stable Diffusion 1.x.
"""

from __future__ import annotations

import pytest
import torch
from families import kinds

from host import given

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
RATES = {"full": 0.01, "attention": 0.03, "lora": 0.03}


@pytest.fixture(scope="module", params=DTYPES)
def flow_model(request, comfy, tmp_path_factory):
    dtype = DTYPES[request.param]
    _, loaded = kinds.load("sd3", tmp_path_factory.mktemp("models"), dtype=dtype)
    stored = {p.dtype for n, p in loaded.model.named_parameters() if "attn.qkv" in n}
    assert stored == {dtype}
    return loaded


@pytest.mark.parametrize("method", RATES)
def test_every_method_in_every_number_format(nodes, flow_model, method):
    family = kinds.FAMILIES["sd3"]
    text, latent = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    before, ended, handed_over = nodes.hand_off(
        flow_model, text, latent, method, steps=10, rate=RATES[method]
    )
    assert ended < before * 0.99, "nothing was learned, so nothing is shown"
    assert handed_over == pytest.approx(ended, rel=2e-5)


@pytest.mark.parametrize("flow_model", ["float32"], indirect=True)
@pytest.mark.parametrize("training_dtype", ["bfloat16", "float16", "float32"])
def test_training_can_compute_in_another_number_format(nodes, flow_model, training_dtype):
    family = kinds.FAMILIES["sd3"]
    text, latent = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    before = given.weights(flow_model)
    exact, losses = nodes.optimize(flow_model, text, latent, 3, 1e-2, 0)
    found, others = nodes.optimize(
        flow_model, text, latent, 3, 1e-2, 0, training_dtype=training_dtype
    )
    assert others["loss"] == pytest.approx(losses["loss"], rel=0.02)
    same = others["loss"] == pytest.approx(losses["loss"], rel=1e-6)
    assert same is (training_dtype == "float32")
    moved, expected = found[0][0] - text[0][0], exact[0][0] - text[0][0]
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), 0) > 0.8
    given.assert_weights(flow_model, before)
    assert flow_model.model.manual_cast_dtype is None


def test_small_steps_on_bfloat16_weights_are_not_rounded_away(nodes, comfy, narrow_checkpoint):
    model = given.load(narrow_checkpoint, dtype=torch.bfloat16)
    before, ended, handed_over = nodes.hand_off(
        model, given.conditioning(), given.latent(), "full", steps=6, rate=0.01, batch_size=1
    )
    assert ended < before * 0.99
    assert handed_over == pytest.approx(ended, rel=2e-5)
