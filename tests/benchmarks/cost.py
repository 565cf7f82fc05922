"""What the trainings take at the least in memory and arithmetic, from full-size models' shapes.

    python3 tests/benchmarks/cost.py [--json OUT.json]

The networks of ComfyUI 0.33.0 or newer without their numbers (PyTorch's meta device), in bfloat16,
at the size that each works at, one picture. Counted is what autograd keeps for the backward pass of
all blocks at once, or with save_memory of one block, and what goes into each. Beside it lie the
weights, and three float32 numbers for each that a LoRA of rank 16 learns. Not counted are the text
encoder and the VAE, which are unloaded, and what PyTorch, the kernels and other programs take.

A pass costs the multiplications and additions of matrices, convolutions and attention. Both stages
go forth and back, and save_memory forth once more, at the default steps and draws. The two thin
matrices beside a layer cost a few hundredths of it and are not counted.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import REPOSITORY, in_host

if __name__ == "__main__":
    in_host()

import torch
from machine import in_process
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command

RANK = 16
GB = 1e9
ATTENTION = [0]
"""Operations of attention, which PyTorch's own counter does not see here."""
Inputs = dict[str, Any]


# The widths and the depths as comfy/model_detection.py reads them from the files.
SD15 = {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "context_dim": 768,
    "num_heads": 8, "num_head_channels": -1, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
SDXL = {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "context_dim": 2048,
    "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip


class Flash(torch.autograd.Function):
    """Attention as far as its memory goes: it keeps what it got and gave, not the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The shape of ``q``."""
        ctx.save_for_backward(q, k, v, q)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Never called."""
        raise NotImplementedError


def flash(_: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *__: Any,
          skip_reshape: bool = False, **___: Any) -> Tensor:  # fmt: skip
    """For ``optimized_attention_override``."""
    keys = k.shape[-2]
    ATTENTION[0] += 4 * q.numel() * keys
    out: Tensor = Flash.apply(q, k, v)
    return out.transpose(1, 2).flatten(2) if skip_reshape else out


def meta(*shape: int) -> Tensor:
    """A tensor without its numbers."""
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def unet(**config: Any) -> tuple[type, Inputs]:
    """One of Stable Diffusion's U-Nets."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    usual = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
        "use_spatial_transformer": True, "legacy": False, "num_head_channels": 64,
    }  # fmt: skip
    return UNetModel, usual | config


def models() -> dict[str, tuple[type, Inputs, Inputs]]:
    """Name -> network, its configuration, what it is asked."""
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.lumina.model import NextDiT
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    one = meta(1)
    sd15, sdxl = unet(**SD15), unet(**SDXL)
    flux = {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
        "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
        "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    z_image = {
        "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "qk_norm": True,
        "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }  # fmt: skip
    large = meta(1, 16, 128, 128)
    return {
        "Stable Diffusion 1.5, 512 px": (
            *sd15, {"x": meta(1, 4, 64, 64), "timesteps": one, "context": meta(1, 77, 768)}
        ),
        "SDXL, 1024 px": (
            *sdxl,
            {"x": meta(1, 4, 128, 128), "timesteps": one, "context": meta(1, 77, 2048),
             "y": meta(1, 2816)},
        ),
        "Z-Image, 1024 px": (
            NextDiT, z_image,
            {"x": large, "timesteps": one, "context": meta(1, 64, 2560), "num_tokens": 64},
        ),
        "Flux.1, 1024 px": (
            Flux, flux,
            {"x": large, "timestep": one, "context": meta(1, 256, 4096), "y": meta(1, 768),
             "guidance": one},
        ),
        "Qwen-Image, 1024 px": (
            QwenImageTransformer2DModel, {"in_channels": 64},
            {"x": large[:, :, None], "timestep": one, "context": meta(1, 64, 3584)},
        ),
    }  # fmt: skip


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """What ``save_memory`` recomputes, as in nodes/comfy_host/trainable.py."""
    for child in network.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            yield from blocks_of(child)
        else:
            yield child


class Kept:
    """Bytes that autograd keeps, by the block that runs; each tensor once."""

    def __init__(self, network: nn.Module) -> None:
        self.running: nn.Module | None = None
        self.bytes: dict[nn.Module | None, int] = {}
        self.inputs = 0
        # A changed weight is made anew in the backward pass.
        self.seen = {w.untyped_storage()._cdata: w.untyped_storage() for w in network.parameters()}
        for block in blocks_of(network):
            block.register_forward_pre_hook(self.begin, with_kwargs=True)
            block.register_forward_hook(self.end)

    def begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A block starts; recomputing keeps what goes into it."""
        self.running = block
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        self.inputs += sum(v.nbytes for v in given if v.requires_grad)

    def end(self, *_: Any) -> None:
        """A block is done."""
        self.running = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """For ``saved_tensors_hooks``."""
        memory = tensor.untyped_storage()
        if memory._cdata not in self.seen:
            # Held, so that no other tensor gets its place.
            self.seen[memory._cdata] = memory
            self.bytes[self.running] = self.bytes.get(self.running, 0) + memory.nbytes()
        return tensor


def draws(settings: Any) -> int:
    """How many noisy copies a training passes through the model."""
    return int(settings.steps * settings.batch_size)


def measured(kind: type, config: Inputs, asked: Inputs) -> dict[str, float]:
    """Gigabytes, and 10^15 operations."""
    import comfy.ops

    from imagic_core import embedding, finetune

    network = kind(
        **config, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
    )
    weights = [p for p in network.parameters() if p.ndim >= 2]
    # As if each had been changed: then its layer keeps its input.
    for weight in network.parameters():
        weight.requires_grad_(weight.ndim >= 2)
    kept = Kept(network)
    options = {"optimized_attention_override": flash}
    ATTENTION[0] = 0
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        with FlopCounterMode(display=False) as counter:
            network(**asked, transformer_options=options)
    forth = (counter.get_total_flops() + ATTENTION[0]) / 1e15
    outside = kept.bytes.pop(None, 0)
    learned = sum(RANK * (w.shape[0] + w[0].numel()) for w in weights)
    return {
        "weights": sum(p.numel() for p in network.parameters()) * 2 / GB,
        "learned": learned * 12 / GB,
        "kept": (outside + sum(kept.bytes.values())) / GB,
        "kept with save_memory": (outside + kept.inputs + max(kept.bytes.values())) / GB,
        "PFLOP": 2 * forth * (draws(embedding.DEFAULT) + draws(finetune.METHODS["lora"])),
        "PFLOP with save_memory": 3
        * forth
        * (draws(embedding.DEFAULT) + draws(finetune.METHODS["lora"])),
    }


def main() -> None:
    """Print a table and write the numbers."""
    given = command.parser(__doc__, "cost").parse_args()
    with tempfile.TemporaryDirectory() as base:
        in_process.import_file("imagic_core", REPOSITORY / "imagic_core" / "__init__.py")
        in_process.start(command.comfyui(), Path(base))
    table = {name: measured(*parts) for name, parts in models().items()}
    command.write(given.json, table)
    for name, row in table.items():
        print(f"{name:30}", "  ".join(f"{key} {value:.1f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
