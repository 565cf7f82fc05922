"""The miniatures' networks without their dead channels, in the place of the host's own.

The function is the same (tests/miniature/test_in_host.py) and costs an eighth of the time,
which is what makes a benchmark of many edits possible on a CPU. What differs is the room that
training has: a low-rank change of the full layout can wake dead channels, here there are none.
"""

from pathlib import Path
from typing import Any

import torch
from miniature import asset, layout
from miniature.unet import UNet
from miniature.upscaler import checkpoint as upscaler
from miniature.upscaler.autoencoder import Autoencoder
from miniature.upscaler.layout import SCALE_FACTOR, Shape
from miniature.upscaler.network import Network
from safetensors.numpy import load_file

PREFIX = "model.diffusion_model."


class Living(UNet):
    """The living network with the host's signature and layers that the host can patch."""

    dtype = torch.float32

    def __init__(self, shape: layout.Shape, checkpoint: Path) -> None:
        """Take the living weights out of a built checkpoint."""
        super().__init__(shape)
        sd = {k[len(PREFIX) :]: t for k, t in load_file(checkpoint).items() if k.startswith(PREFIX)}
        self.load_state_dict(
            {
                n: torch.from_numpy(t.astype("float32"))
                for n, t in layout.own_tensors(shape, sd).items()
            }
        )
        with_hosts_layers(self)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, **_unused: object
    ) -> torch.Tensor:
        """[B, 4, H, W], [B] and [B, 77, 768] to the noise [B, 4, H, W]."""
        x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x, timesteps, context[..., : self.shape.text])


class LivingUpscaler(Network):
    """The living upscaler with the host's signature and layers that the host can patch."""

    dtype = torch.float32

    def __init__(self, shape: Shape, own: dict[str, Any]) -> None:
        """Take the living weights of the asset."""
        super().__init__(shape)
        self.load_state_dict({n: torch.from_numpy(t) for n, t in own.items()})
        with_hosts_layers(self)

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        y: torch.Tensor,
        **_unused: object,
    ) -> torch.Tensor:
        """[B, 7, H, W], [B], [B, 77, 1024] and levels [B] to v [B, 4, H, W]."""
        x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x, timesteps, context[..., : self.shape.text], y)


class LivingCoder(Autoencoder):
    """The living autoencoder with the host's signature."""

    def __init__(self, own: dict[str, Any], latent_std: float) -> None:
        """Take the living weights of the asset."""
        super().__init__()
        self.load_state_dict({n: torch.from_numpy(t) for n, t in own.items()})
        self.scale = SCALE_FACTOR * latent_std

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1] to the host's latents."""
        return self.encoder(x) / self.scale

    def decode(self, z: torch.Tensor, **_unused: object) -> torch.Tensor:
        """The host's latents to pictures."""
        return self.decoder(z * self.scale)


def with_hosts_layers(network: torch.nn.Module) -> None:
    """Make torch's layers the host's own, which can be patched."""
    import comfy.ops

    for module in network.modules():
        hosts = getattr(comfy.ops.disable_weight_init, type(module).__name__, None)
        if hosts is not None and type(module).__module__.startswith("torch.nn"):
            module.__class__ = hosts
    network.to(memory_format=torch.channels_last)


def install_upscaler(model: Any, vae: Any) -> None:
    """The same for the MODEL and the VAE of the upscaler's checkpoint."""
    about, network, coder = asset.read(upscaler.FOLDER)
    living = LivingUpscaler(Shape(**about["shape"]), network)
    model.model.diffusion_model = living.requires_grad_(False).eval()
    vae.first_stage_model = LivingCoder(coder, about["latent_std"]).requires_grad_(False).eval()


def install(model: Any, checkpoint: Path, folder: Path = asset.FOLDER) -> None:
    """Put the living network into a MODEL that the host has loaded from `checkpoint`."""
    import comfy.model_management

    # What was put into the weights of a network that is to go would be taken out of this one.
    comfy.model_management.unload_all_models()
    about, _, _ = asset.read(folder)
    network = Living(layout.Shape(**about["shape"]), checkpoint)
    model.model.diffusion_model = network.requires_grad_(False).eval()
