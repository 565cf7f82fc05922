"""Training from nothing to an asset at the smallest size: every stage runs, and resumes."""

import json

import numpy as np
import pytest
import torch

from miniature import asset, build, captions, layout, train, unet

SHAPE = layout.Shape(fine=20, coarse=40, time=16, feed=24, text=captions.DIMENSIONS)


def config(steps):
    small = json.loads(json.dumps(train.CONFIG))
    small |= {"pictures": 24, "tuning_pictures": 8, "init": None}
    for stage in ("ae", "unet", "reader"):
        small[stage] |= {"steps": steps, "batch": 4}
    small["unet"] |= {"shape": vars(SHAPE), "report": 2}
    return small


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all stages with two steps each."""
    folder = tmp_path_factory.mktemp("run")
    run = train.Run(folder / "work", "cpu", config(2), folder / "out")
    for stage in train.STAGES.values():
        stage(run)
    return run


def test_it_ends_in_an_asset_that_builds(finished, tmp_path):
    folder = finished.out / "asset"
    out = build.build(tmp_path / "a.safetensors", folder)
    assert asset.digest(out) == json.loads((folder / "asset.json").read_text())["sha256"]
    stages = [json.loads(s)["stage"] for s in (finished.out / "run" / "log.jsonl").open()]
    assert stages == ["ae", "unet", "reader", "export"]


def test_a_larger_limit_goes_on_from_the_checkpoint(finished):
    before = torch.load(finished.work / "unet.pt")
    longer = train.Run(finished.work, "cpu", config(4), finished.out)
    train.train_unet(longer)
    after = torch.load(finished.work / "unet.pt")
    assert before["clock"][0] == 2 and after["clock"][0] == 4
    assert any((before["model"][n] != after["model"][n]).any() for n in before["model"])


def autoencoder_again(finished, work, setting):
    """Weights of an autoencoder that was trained anew on the same pictures."""
    run = train.Run(work, "cpu", setting)
    for path in finished.work.glob("t*.npy"):
        (run.work / path.name).symlink_to(path)
    train.train_autoencoder(run)
    return torch.load(run.work / "ae.pt")["model"]


def test_the_same_seed_trains_the_same_weights(finished, tmp_path):
    one = torch.load(finished.work / "ae.pt")["model"]
    two = autoencoder_again(finished, tmp_path / "work", config(2))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_the_decoder_ends_alone(finished, tmp_path):
    networks = []
    for steps in (1, 2):
        small = config(steps)
        small["ae"]["decoder_alone_from"] = 0.5
        networks.append(autoencoder_again(finished, tmp_path / str(steps), small))
    moved = {n for n in networks[0] if not torch.equal(networks[0][n], networks[1][n])}
    assert "to_picture.weight" in moved
    assert not any(n.startswith(("encoder.", "to_latent")) for n in moved)


def test_pictures_and_latents_are_of_the_same_examples(finished):
    pictures = train.pictures(finished, "train")
    assert (pictures[7] == train.world.render(*train.example("train", 7))).all()
    z = train.latents(finished, "train")
    assert z.shape == (24, 4, 16, 16) and train.latents(finished, "tuning").shape[0] == 8


@pytest.mark.parametrize("wider", [False, True])
def test_warm_start_takes_over_what_the_checkpoint_knows(finished, tmp_path, wider):
    shape = layout.Shape(40, 80, 32, 48, SHAPE.text, 1, True) if wider else SHAPE
    about, own, _ = asset.read(finished.out / "asset")
    assert about["shape"] == vars(SHAPE)
    out = build.build(tmp_path / "a.safetensors", finished.out / "asset")
    model = unet.UNet(shape)
    train.start_from(model, out)
    small = unet.UNet(SHAPE)
    small.load_state_dict({n: torch.from_numpy(t) for n, t in own.items()})
    full = layout.sd_tensors(shape, {n: p.numpy() for n, p in model.state_dict().items()})
    for name, t in layout.own_tensors(SHAPE, full).items():
        known = np.abs(own[name]) > 0
        assert np.allclose(t[known], own[name][known], atol=1e-6), name
    if not wider:
        assert all(torch.equal(p, small.state_dict()[n]) for n, p in model.state_dict().items())


def test_spoken_captions_leave_out_and_drop(finished):
    setting = {"empty_captions": 0.5, "place_left_out": 1.0}
    shown = [train.example("train", i)[1] for i in range(200)]
    texts = train.spoken(shown, np.random.default_rng(0), setting)
    assert 70 < texts.count("") < 130
    places = {"grass", "meadow", "beach", "sand", "snow", "night", "dark"}
    assert not any(places & set(text.split()) for text in texts)


def test_min_snr_weighting_asks_less_of_what_is_nearly_clean():
    class Zero(torch.nn.Module):
        def forward(self, x, t, text):
            return torch.zeros_like(x)

    z, text = torch.zeros(64, 4, 16, 16), torch.zeros(64, 77, 1)
    weighted, plain = train.noise_loss(
        Zero(), z, text, train.alphas(), torch.Generator().manual_seed(0)
    )
    assert plain.item() == pytest.approx(1, abs=0.02)
    # error 1 everywhere leaves the mean weight: 5 / SNR where the SNR is above 5
    snr = train.alphas() / (1 - train.alphas())
    expected = torch.where(snr > 5, 5 / snr, 1).mean().item()
    assert expected < 0.95
    assert weighted.item() == pytest.approx(expected, abs=0.02)
