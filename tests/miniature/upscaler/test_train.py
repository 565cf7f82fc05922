"""Training from nothing to an asset at the smallest size: every stage runs, and resumes."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from miniature import asset, captions
from miniature.train import Run, pictures
from miniature.upscaler import layout, train
from miniature.upscaler.autoencoder import Autoencoder
from miniature.upscaler.network import Network

SHAPE = layout.Shape(fine=16, coarse=32, time=16, feed=24, text=captions.DIMENSIONS)


def config(steps):
    small = json.loads(json.dumps(train.CONFIG)) | {"pictures": 12, "tuning_pictures": 4}
    for stage in ("upscaler_ae", "upscaler"):
        small[stage] |= {"steps": steps, "batch": 4, "report": 2, "whole_from": 0.5}
    small["upscaler"]["shape"] = asdict(SHAPE)
    return small


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all stages with two steps each, but for the checkpoint of its asset."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder / "work", "cpu", config(2), folder / "out")
    for name in ("render", "upscaler_ae", "latents", "upscaler"):
        train.STAGES[name](run)
    return run


def test_its_asset_holds_every_living_weight(finished):
    about, network, coder = asset.read(train.write_asset(finished))
    for weights, module in ((network, Network(SHAPE)), (coder, Autoencoder())):
        wanted = module.state_dict()
        assert weights.keys() == wanted.keys()
        assert all(weights[n].shape == tuple(wanted[n].shape) for n in wanted)
    assert layout.Shape(**about["shape"]) == SHAPE and about["latent_std"] > 0


def test_a_larger_limit_goes_on_from_the_checkpoint(finished):
    before = torch.load(finished.work / "upscaler.pt")
    train.train_network(Run(finished.work, "cpu", config(4), finished.out))
    after = torch.load(finished.work / "upscaler.pt")
    assert before["clock"][0] == 2 and after["clock"][0] == 4
    assert any((before["model"][n] != after["model"][n]).any() for n in before["model"])


def test_the_same_seed_trains_the_same_weights(finished, tmp_path):
    run = Run(tmp_path / "work", "cpu", config(2))
    for path in finished.work.glob("t*.npy"):
        (run.work / path.name).symlink_to(path)
    train.train_autoencoder(run)
    one, two = (torch.load(r.work / "upscaler_ae.pt")["model"] for r in (finished, run))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_latents_are_of_their_pictures_and_of_unit_variance(finished):
    model, std = train.coder(finished)
    z = train.latents(finished, "train")
    assert z.shape == (12, 4, 32, 32)
    ours = model.encoder(train.pixels(pictures(finished, "train")[7:8])) / std
    assert (z[7] - ours).abs().max() < 1e-2
    assert train.latents(finished, "tuning").std() == pytest.approx(1, abs=0.01)


def test_a_network_that_knows_v_has_no_loss():
    z, beside = torch.randn(3, 4, 8, 8), torch.randn(3, 3, 8, 8)

    class Knowing(torch.nn.Module):
        def forward(self, x, t, text, level):
            a = train.alphas()[t][:, None, None, None]
            noise = (x[:, :4] - a.sqrt() * z) / (1 - a).sqrt()
            return a.sqrt() * noise - (1 - a).sqrt() * z

    assert train.v_loss(Knowing(), z, beside, torch.zeros(3, 77, 4), seed=0) < 1e-6


@pytest.mark.parametrize("small", [True, False])
def test_the_layout_keeps_every_living_weight_and_nothing_else(small):
    shape = SHAPE if small else layout.Shape()
    own = {n: torch.randn(t.shape).numpy() for n, t in Network(shape).state_dict().items()}
    full = layout.network_tensors(own)
    assert {n: t.shape for n, t in full.items()} == layout.network_shapes()
    living = sum(np.count_nonzero(t) for t in own.values())
    assert sum(np.count_nonzero(t) for t in full.values()) == living + layout.WIDTH
