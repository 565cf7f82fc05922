"""The host computes from the built checkpoint what training computed on the living weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from miniature import asset, build, captions
from miniature.upscaler import checkpoint, layout
from miniature.upscaler.autoencoder import Autoencoder
from miniature.upscaler.network import Network

SHAPE = layout.Shape(fine=32, coarse=64, time=48, feed=40, text=captions.DIMENSIONS)
STD = 1.25


@pytest.fixture(scope="module")
def both(comfy, tmp_path_factory):
    """Random living networks, and (MODEL, CLIP, VAE) of the checkpoint made of them."""
    import comfy.model_management
    import comfy.sd

    torch.manual_seed(0)
    network, coder = Network(SHAPE), Autoencoder()
    for p in [*network.parameters(), *coder.parameters()]:
        torch.nn.init.normal_(p, 1.0 if p.ndim < 2 else 0.0, 0.05)
    torch.nn.init.zeros_(coder.decoder.conv_out.bias)  # else the picture is white
    for module in (network, coder):
        module.half().float()  # what the file holds
    folder = tmp_path_factory.mktemp("asset")
    weights = ({n: p.numpy() for n, p in m.state_dict().items()} for m in (network, coder))
    asset.write(SHAPE, *weights, STD, folder)
    path = folder / "upscaler.safetensors"
    build.expand(path, folder, checkpoint.of_asset)
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    comfy.model_management.load_models_gpu([loaded[0]])
    path.unlink()
    return network, coder, loaded[:3]


def test_the_host_takes_it_for_the_x4_upscaler(both):
    model, _, vae = both[2]
    assert type(model.model).__name__ == "SD_X4Upscaler"
    assert type(model.model.model_config).__name__ == "SD_X4Upscaler"
    assert vae.downscale_ratio == 4 and vae.latent_channels == 4


def test_dead_channels_change_nothing(both):
    network, _, (model, _, _) = both
    x, t, level = torch.randn(2, 7, 32, 32), torch.tensor([3.0, 700.0]), torch.tensor([0, 350])
    text = torch.randn(2, 77, captions.DIMENSIONS)
    with torch.no_grad():
        ours = network(x, t, text, level)
        wide = F.pad(text, (0, layout.TEXT - captions.DIMENSIONS))
        theirs = model.model.diffusion_model(x, t, context=wide, y=level)
        others = network(x, t, text, level.flip(0))
    assert ours.std() > 0.1 and (ours - others).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-4


def test_its_text_encoder_reads_our_tokens_and_states(both):
    import nodes

    clip = both[2][1]
    everything = " ".join(captions.WORDS)
    states = captions.TextStates(captions.OPEN_CLIP)
    for text in ("", "a photo of a sitting dog wearing a hat on the grass", everything):
        theirs = nodes.CLIPTextEncode().encode(clip, text)[0][0][0]
        ours = torch.from_numpy(states([text]))
        assert theirs.shape == (1, 77, layout.TEXT)
        assert (theirs[..., : captions.DIMENSIONS] - ours).abs().max() < 1e-4
        assert theirs[..., captions.DIMENSIONS :].abs().max() == 0


def test_its_autoencoder_encodes_and_decodes_as_trained(both):
    _, coder, (_, _, vae) = both
    picture = torch.rand(1, 64, 96, 3)
    with torch.no_grad():
        z = coder.encoder(picture.permute(0, 3, 1, 2) * 2 - 1)
        theirs = vae.encode(picture)
        # the sampler multiplies by SCALE_FACTOR; half precision rounds the scale
        ours = z / STD
        assert (theirs * layout.SCALE_FACTOR - ours).abs().max() < 1e-3 * ours.abs().max()
        shown = (coder.decoder(z).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
        assert 0.05 < shown.std()
        assert (vae.decode(theirs) - shown).abs().max() < 2e-3


def test_noise_and_target_are_the_hosts(both):
    from miniature.upscaler.train import alphas, noisy

    model = both[2][0]
    sampling, a = model.get_model_object("model_sampling"), alphas()
    assert (((1 - a) / a).sqrt() / sampling.sigmas - 1).abs().max() < 1e-4
    picture, noise = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    level = torch.tensor([200])
    theirs = model.model.noise_augmentor.q_sample(picture, level, noise=noise)
    assert (theirs - noisy(picture, a[level], noise)).abs().max() < 1e-5

    z, eps = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    sigma = sampling.sigmas[level]
    # the network is given the noisy latent of unit variance, and its v brings the latent back
    given = sampling.calculate_input(sigma, z + sigma * eps)
    assert (given - noisy(z, a[level], eps)).abs().max() < 1e-5
    v = noisy(eps, a[level], -z)
    assert (sampling.calculate_denoised(sigma, v, z + sigma * eps) - z).abs().max() < 1e-4
