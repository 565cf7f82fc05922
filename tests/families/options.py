"""What other nodes put on a MODEL, each by the host's own node where it has one.

Each function takes a MODEL and returns a changed clone; call it in inference mode, as the
executor does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

Change = Callable[[Any], Any]


def _by_node(module: str, name: str, *args: Any, **kwargs: Any) -> Change:
    def change(model: Any) -> Any:
        node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        if hasattr(node, "execute"):
            found = node.execute(model, *args, **kwargs)
            return getattr(found, "result", found)[0]
        return getattr(node(), node.FUNCTION)(model, *args, **kwargs)[0]

    return change


def _discrete(sampling: str, zsnr: bool = False) -> Change:
    return _by_node("nodes_model_advanced", "ModelSamplingDiscrete", sampling, zsnr)


def _edm(sampling: str) -> Change:
    return _by_node("nodes_model_advanced", "ModelSamplingContinuousEDM", sampling, 120.0, 0.002)


def free_u(model: Any) -> Any:
    """FreeU_V2, which knows its blocks by how much wider than the first they are."""
    change = _by_node("nodes_freelunch", "FreeU_V2", 1.3, 1.4, 0.9, 0.2)
    # The smallest networks have one width throughout.
    config = model.model.model_config.unet_config
    narrower = config["model_channels"] // 4
    with mock.patch.dict(config, model_channels=narrower):
        return change(model)


def lora(model: Any) -> Any:
    """A LoRA of random numbers for all matrices."""
    import comfy.sd

    generator = torch.Generator().manual_seed(5)
    weights = {}
    for path, module in model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            name = f"diffusion_model.{path}"
            weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) / 20
            weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator) / 20
    return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0)[0]


def function_wrapper(model: Any) -> Any:
    """A `model_function_wrapper`."""
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, a: 0.8 * apply(a["input"], a["timestep"], **a["c"])
    )
    return model


def _wrapper(kind: str) -> Change:
    def change(model: Any) -> Any:
        model = model.clone()
        model.add_wrapper_with_key(kind, "darker", lambda run, *a, **k: 0.8 * run(*a, **k))
        return model

    return change


def attention_patches(model: Any) -> Any:
    """Functions around the attention's inputs and outputs."""
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, _options: (q * 1.1, k, v))
    model.set_model_attn2_output_patch(lambda n, _options: n * 0.9)
    return model


def compiled_block(model: Any) -> Any:
    """One block by torch.compile, as packs do that compile block by block."""
    model = model.clone()
    name = "diffusion_model.joint_blocks.0"
    model.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))
    return model


OPTIONS: dict[str, tuple[str, Change]] = {
    "LoRA": ("sd15", lora),
    "Model Sampling SD3": ("sd3", _by_node("nodes_model_advanced", "ModelSamplingSD3", 5.0)),
    "Model Sampling AuraFlow": (
        "auraflow", _by_node("nodes_model_advanced", "ModelSamplingAuraFlow", 3.0),
    ),
    "Model Sampling Flux": (
        "flux", _by_node("nodes_model_advanced", "ModelSamplingFlux", 1.15, 0.5, 1024, 1024),
    ),
    **{
        f"Model Sampling Discrete {name}": ("sd15", _discrete(name))
        for name in ("eps", "v_prediction", "lcm", "x0")
    },
    "Model Sampling Discrete v_prediction zsnr": ("sd15", _discrete("v_prediction", zsnr=True)),
    **{
        f"Model Sampling Continuous EDM {name}": ("sd15", _edm(name))
        for name in ("v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow")
    },
    "Model Sampling Continuous V": (
        "sd15",
        _by_node("nodes_model_advanced", "ModelSamplingContinuousV", "v_prediction", 500.0, 0.03),
    ),
    "attention patches": ("sd15", attention_patches),
    "FreeU V2": ("sdxl", free_u),
    "HyperTile": ("sd15", _by_node("nodes_hypertile", "HyperTile", 32, 2, 0, False)),
    "DeepShrink": (
        "sd15",
        _by_node(
            "nodes_model_downscale", "PatchModelAddDownscale",
            1, 2.0, 0.0, 0.35, True, "bicubic", "bicubic",
        ),
    ),
    "model function wrapper": ("sd15", function_wrapper),
    "APPLY_MODEL wrapper": ("sd15", _wrapper("apply_model")),
    "DIFFUSION_MODEL wrapper": ("sd15", _wrapper("diffusion_model")),
    "compiled block": ("sd3", compiled_block),
    "TorchCompileModel": ("sd15", _by_node("nodes_torch_compile", "TorchCompileModel", "eager")),
    "EasyCache": ("sd15", _by_node("nodes_easycache", "EasyCacheNode", 0.2, 0.15, 0.95, False)),
    "RescaleCFG": ("sd15", _by_node("nodes_model_advanced", "RescaleCFG", 0.7)),
}  # fmt: skip
"""Name -> the family that it is tried on, and the change."""
