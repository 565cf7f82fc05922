"""The forms in which people own quantised checkpoints, made of an ordinary one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from families import kinds
from families.newer import NEWER

SCALED_FP8 = "scaled_fp8"
LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8E4M3Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
}
"""The host's names for its own forms, which newer hosts know."""

FORMS = (SCALED_FP8, *LAYOUTS)

GGUF = {
    "sd15": "sd1", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux_schnell": "flux",
    "flux2": "flux", "chroma": "flux", "auraflow": "aura", "hidream": "hidream",
    "cosmos_predict2": "cosmos", "ltxv": "ltxv", "hunyuan_video": "hyvid", "wan21": "wan",
    "lumina2": "lumina2", "z_image": "lumina2", "qwen_image": "qwen_image",
}  # fmt: skip
"""Family -> what its GGUF files call it, of those that the pack which loads them knows."""

_BLOCKS = re.compile(r"(blocks|layers)\.")


def load(name: str, form: str, folder: Path) -> tuple[kinds.Family, Any]:
    """A family and its tiny MODEL, quantised; ``folder`` is left empty."""
    import comfy.sd
    from safetensors.torch import save_file

    family, path = (kinds.FAMILIES | NEWER)[name], folder / f"{name}_{form}.safetensors"
    with kinds.small_constants(), family.taken():
        save_file(quantised(family.state_dict(), form), path)
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(path))
    path.unlink()
    return family, model


def quantised(weights: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """The same weights with every matrix in one of ``FORMS``."""
    found: dict[str, torch.Tensor] = {}
    for key, weight in weights.items():
        layer = key.removesuffix(".weight")
        # The host reads the network's plan off the shapes of what lies outside its blocks.
        plain = not _BLOCKS.search(key) and form != SCALED_FP8
        if layer == key or plain or weight.ndim != 2 or any(side % 32 for side in weight.shape):
            found[key] = weight
        elif form == SCALED_FP8:
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            found[key] = (weight / scale).to(torch.float8_e4m3fn)
            found[f"{layer}.scale_weight"] = scale.float()
        else:
            found |= _in_layout(layer, weight, form)
    if form == SCALED_FP8:
        found["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return found


def load_gguf(name: str, pack: Any, folder: Path) -> tuple[kinds.Family, Any]:
    """A family and its tiny MODEL as the GGUF pack's own loader makes it."""
    import folder_paths
    import gguf

    family, path = (kinds.FAMILIES | NEWER)[name], folder / f"{name}.gguf"
    with kinds.small_constants(), family.taken():
        writer = gguf.GGUFWriter(path, GGUF[name])
        for key, weight in family.state_dict().items():
            matrix = key.endswith(".weight") and weight.ndim == 2 and weight.shape[1] % 32 == 0
            form = gguf.GGMLQuantizationType.Q8_0 if matrix else gguf.GGMLQuantizationType.F32
            packed = gguf.quants.quantize(weight.numpy(), form)
            writer.add_tensor(key, packed, raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        folder_paths.add_model_folder_path("unet_gguf", str(folder))
        with torch.inference_mode():
            (model,) = pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(path.name)
    return family, model


def gguf_pack(comfyui: Path) -> Any:
    """The pack that loads GGUF files, from where COMFYUI_GGUF says or among the custom nodes.

    None where there is none, or not the package that it needs.
    """
    folder = Path(os.environ.get("COMFYUI_GGUF", comfyui / "custom_nodes" / "ComfyUI-GGUF"))
    if not (folder / "nodes.py").is_file() or importlib.util.find_spec("gguf") is None:
        return None
    spec = importlib.util.spec_from_file_location("comfyui_gguf", folder / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_gguf"] = module
    spec.loader.exec_module(module)
    return module


def are_known() -> bool:
    """Whether this host has ``LAYOUTS``."""
    import comfy.quant_ops

    return hasattr(comfy.quant_ops, "get_layout_class")


def _in_layout(layer: str, weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    from comfy.quant_ops import QuantizedTensor

    made = QuantizedTensor.from_float(weight, LAYOUTS[form], scale="recalculate")
    about = json.dumps({"format": form}).encode()
    return made.state_dict(f"{layer}.weight") | {
        f"{layer}.comfy_quant": torch.tensor(list(about), dtype=torch.uint8)
    }
