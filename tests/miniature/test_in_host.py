"""The host computes from the built checkpoint what training computed on the living weights."""

import pytest
import torch
from torch.nn import functional as F

from miniature import asset, autoencoder, build, captions, layout, unet

SHAPE = layout.Shape(fine=40, coarse=80, time=64, feed=80, text=captions.DIMENSIONS)
STD = 1.25


@pytest.fixture(scope="module")
def both(comfy, tmp_path_factory):
    """Random living networks, and (MODEL, CLIP, VAE) of the checkpoint made of them."""
    import comfy.model_management
    import comfy.sd

    torch.manual_seed(0)
    network, coder = unet.UNet(SHAPE), autoencoder.Autoencoder()
    for p in network.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim < 2 else 0.0, 0.05)
    for module in (network, coder):
        module.half().float()  # what the file holds
    folder = tmp_path_factory.mktemp("asset")
    asset.write(
        SHAPE,
        *({n: p.numpy() for n, p in m.state_dict().items()} for m in (network, coder)),
        STD,
        folder,
    )
    build.seal(folder)
    path = build.build(folder / "small.safetensors", folder)
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    comfy.model_management.load_models_gpu([loaded[0]])
    return network, coder, loaded[:3]


def test_it_is_an_ordinary_sd15(both):
    assert type(both[2][0].model.model_config).__name__ == "SD15"


def test_unet_dead_channels_change_nothing(both):
    network, _, (model, _, _) = both
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 700.0])
    text = torch.randn(2, 77, captions.DIMENSIONS)
    with torch.no_grad():
        ours = network(x, t, text)
        wide = F.pad(text, (0, captions.WIDTH - captions.DIMENSIONS))
        theirs = model.model.diffusion_model(x, t, context=wide)
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4


def test_clip_reads_our_tokens_and_states(both):
    import nodes

    clip = both[2][1]
    everything = " ".join(captions.WORDS)
    for text in ("", "a photo of a sitting dog wearing a hat on the grass", everything):
        theirs = nodes.CLIPTextEncode().encode(clip, text)[0][0][0]
        ours = torch.from_numpy(captions.TextStates()([text]))
        assert theirs.shape == (1, 77, captions.WIDTH)
        assert (theirs[..., : captions.DIMENSIONS] - ours).abs().max() < 1e-4
        assert theirs[..., captions.DIMENSIONS :].abs().max() == 0


def test_vae_encodes_and_decodes_as_trained(both):
    _, coder, (_, _, vae) = both
    picture = torch.rand(2, 128, 128, 3)
    with torch.no_grad():
        z = coder.encode(picture.permute(0, 3, 1, 2))
        theirs = vae.encode(picture)
        # the sampler multiplies by SCALE_FACTOR: unit variance for raw latents of this spread
        assert (theirs * layout.SCALE_FACTOR - z / STD).abs().max() < 1e-4
        shown = coder.decode(z).permute(0, 2, 3, 1).clamp(0, 1)
        assert (vae.decode(theirs) - shown).abs().max() < 1e-4


def test_noise_schedule_is_the_hosts(both):
    from miniature.train import alphas

    sampling = both[2][0].get_model_object("model_sampling")
    ours = ((1 - alphas()) / alphas()).sqrt()
    assert (ours / sampling.sigmas - 1).abs().max() < 1e-4
