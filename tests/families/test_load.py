"""The host takes each tiny checkpoint for the family it stands for, and every input matters."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from families import kinds

NAMES = list(kinds.FAMILIES)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, comfy, tmp_path_factory):
    """A family, its checkpoint as `UNETLoader` would load it, and what the host said of it."""
    import comfy.sd

    family = kinds.FAMILIES[request.param]
    path = tmp_path_factory.mktemp("families") / f"{family.name}.safetensors"
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        with kinds.small_constants():
            patcher = comfy.sd.load_diffusion_model(str(family.build(path)))
    finally:
        logging.getLogger().removeHandler(handler)
    path.unlink()
    return SimpleNamespace(family=family, patcher=patcher, said=said)


def sample(patcher, family, positive) -> torch.Tensor:
    """Two steps of the host's KSampler at guidance 2 from the family's own latent."""
    import nodes

    negative = kinds.conditioning(family, seed=9)
    with torch.inference_mode():
        (out,) = nodes.common_ksampler(
            patcher,
            5,
            2,
            2.0,
            "euler",
            "simple",
            positive,
            negative,
            kinds.latent(family, seed=3),
            denoise=0.8,
        )
    return out["samples"]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference, relative to the spread of `a`."""
    return float((a - b).square().mean().sqrt() / a.std())


@pytest.mark.parametrize("name", NAMES)
def test_host_detects_the_full_size_model(comfy, name):
    # On the meta device, as some of these would take gigabytes.
    from comfy import model_detection

    family = kinds.FAMILIES[name]
    model = kinds._host_model(family.sketch(), "meta")
    keys = dict(model.state_dict())
    config = model_detection.model_config_from_unet(keys, "")
    assert type(config).__name__ == family.config_class
    shapes = {k: v.shape for k, v in keys.items()}
    config.set_inference_dtype(torch.float32, None)
    again = config.get_model(keys, "", device="meta").diffusion_model.state_dict()
    assert {k: v.shape for k, v in again.items()} == shapes


def test_host_detects_the_family(loaded):
    family, model = loaded.family, loaded.patcher.model
    assert type(model.model_config).__name__ == family.config_class
    assert type(model).__name__ == family.model_class
    assert model.model_type.name == family.prediction
    assert model.latent_format.latent_channels == family.latent_channels


def test_no_weight_is_missing(loaded):
    complaints = [m for m in loaded.said if "missing" in m or "unexpected" in m]
    marks = [m for m in complaints if "output_blocks.11.1" in m]
    assert complaints == marks
    assert len(marks) == (loaded.family.extra_keys is not None)


def test_samples_are_finite(loaded):
    family = loaded.family
    start = kinds.latent(family, seed=3)["samples"]
    out = sample(loaded.patcher, family, kinds.conditioning(family))
    assert out.shape == start.shape
    assert torch.isfinite(out).all()
    assert difference(out, start) > 0.1


def test_same_inputs_give_the_same_sample(loaded):
    positive = kinds.conditioning(loaded.family)
    first = sample(loaded.patcher, loaded.family, positive)
    assert torch.equal(first, sample(loaded.patcher, loaded.family, positive))


def test_embedding_changes_the_sample(loaded):
    family = loaded.family
    positive = kinds.conditioning(family)
    other = copy.deepcopy(positive)
    other[0][0] = kinds.conditioning(family, seed=1)[0][0]
    a, b = (sample(loaded.patcher, family, c) for c in (positive, other))
    assert difference(a, b) > 1e-3


def test_pooled_vector_changes_the_sample_where_the_model_reads_it(loaded):
    family = loaded.family
    if family.pooled_width is None:
        pytest.skip("no pooled vector")
    positive = kinds.conditioning(family)
    other = copy.deepcopy(positive)
    other[0][1]["pooled_output"] = kinds.conditioning(family, seed=1)[0][1]["pooled_output"]
    a, b = (sample(loaded.patcher, family, c) for c in (positive, other))
    if family.uses_pooled:
        assert difference(a, b) > 1e-3
    else:
        assert torch.equal(a, b)


def test_scalars_change_the_sample(loaded):
    family = loaded.family
    if not family.scalars:
        pytest.skip("no scalar in the conditioning")
    positive = kinds.conditioning(family)
    a = sample(loaded.patcher, family, positive)
    for key in family.scalars:
        other = copy.deepcopy(positive)
        other[0][1][key] += 64 if isinstance(other[0][1][key], int) else 0.5
        assert difference(a, sample(loaded.patcher, family, other)) > 1e-4, key


def test_concatenated_picture_changes_the_sample(loaded):
    family = loaded.family
    if family.concat is None:
        pytest.skip("no picture beside the noise")
    positive = kinds.conditioning(family)
    a = sample(loaded.patcher, family, positive)
    for key in [k for k in positive[0][1] if k.startswith("concat_")]:
        other = copy.deepcopy(positive)
        other[0][1][key] = other[0][1][key].flip(-1)
        assert difference(a, sample(loaded.patcher, family, other)) > 1e-3, key


def test_noise_level_changes_the_prediction(loaded):
    # What the network itself says, before the host's formula for x0 brings sigma in.
    family, model = loaded.family, loaded.patcher.model
    embedding, entries = kinds.conditioning(family)[0]
    x = kinds.latent(family)["samples"]
    conds = model.extra_conds(cross_attn=embedding, noise=x, device=x.device, seed=1, **entries)
    inputs = {key: cond.cond for key, cond in conds.items()}
    inputs["context"] = inputs.pop("c_crossattn")
    if "c_concat" in inputs:
        x = torch.cat([x, inputs.pop("c_concat")], dim=1)
    sigmas = model.model_sampling.sigmas[[300, 700]]
    with torch.inference_mode():
        early, late = (
            model.diffusion_model(x, t, **inputs)
            for t in model.model_sampling.timestep(sigmas).float()[:, None]
        )
    assert difference(early, late) > 1e-3


def test_seed_decides_the_weights(comfy):
    family = kinds.FAMILIES["sd3"]
    first, same, other = (family.state_dict(seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
