"""The forms in which people own quantised checkpoints, made of an ordinary one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from families import kinds

SCALED_FP8 = "scaled_fp8"
LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8E4M3Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
}
"""The host's names for its own forms, which newer hosts know."""

FORMS = (SCALED_FP8, *LAYOUTS)


def load(name: str, form: str, folder: Path) -> tuple[kinds.Family, Any]:
    """A family and its tiny MODEL, quantised; ``folder`` is left empty."""
    import comfy.sd
    from safetensors.torch import save_file

    family, path = kinds.FAMILIES[name], folder / f"{name}_{form}.safetensors"
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
        plain = "blocks." not in key and form != SCALED_FP8
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

    family, path = kinds.FAMILIES[name], folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, name)
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


def _in_layout(layer: str, weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    from comfy.quant_ops import QuantizedTensor

    made = QuantizedTensor.from_float(weight, LAYOUTS[form], scale="recalculate")
    about = json.dumps({"format": form}).encode()
    return made.state_dict(f"{layer}.weight") | {
        f"{layer}.comfy_quant": torch.tensor(list(about), dtype=torch.uint8)
    }
