"""The miniature's network without its dead channels, in the place of the host's own.

The function is the same (tests/miniature/test_in_host.py) and costs an eighth of the time,
which is what makes a benchmark of many edits possible on a CPU. What differs is the room that
training has: a low-rank change of the full layout can wake dead channels, here there are none.
"""

from pathlib import Path
from typing import Any

import torch
from miniature import asset, layout
from miniature.unet import UNet
from safetensors.numpy import load_file

PREFIX = "model.diffusion_model."


class Living(UNet):
    """The living network with the host's signature and layers that the host can patch."""

    dtype = torch.float32

    def __init__(self, shape: layout.Shape, checkpoint: Path) -> None:
        """Take the living weights out of a built checkpoint."""
        import comfy.ops

        super().__init__(shape)
        sd = {k[len(PREFIX) :]: t for k, t in load_file(checkpoint).items() if k.startswith(PREFIX)}
        self.load_state_dict(
            {
                n: torch.from_numpy(t.astype("float32"))
                for n, t in layout.own_tensors(shape, sd).items()
            }
        )
        for module in self.modules():
            hosts = getattr(comfy.ops.disable_weight_init, type(module).__name__, None)
            if hosts is not None and type(module).__module__.startswith("torch.nn"):
                module.__class__ = hosts
        self.to(memory_format=torch.channels_last)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, **_unused: object
    ) -> torch.Tensor:
        """[B, 4, H, W], [B] and [B, 77, 768] to the noise [B, 4, H, W]."""
        x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x, timesteps, context[..., : self.shape.text])


def install(model: Any, checkpoint: Path, folder: Path = asset.FOLDER) -> None:
    """Put the living network into a MODEL that the host has loaded from `checkpoint`."""
    about, _, _ = asset.read(folder)
    network = Living(layout.Shape(**about["shape"]), checkpoint)
    model.model.diffusion_model = network.requires_grad_(False).eval()
