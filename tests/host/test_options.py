"""An edit in servers that are started as users start theirs: the same is learned by all of them.

The options that a GPU's memory is shared by, `--lowvram` and its kin, ComfyUI refuses without one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from machine.host_process import serve
from PIL import Image
from safetensors import safe_open
from talk.api import node
from talk.client import Client

OPTIONS = {
    "plain": [],
    "lru": ["--cache-lru", "3"],
    "none": ["--cache-none"],
    "fast": ["--fast"],
    "static": ["--disable-dynamic-vram"],
}


def learned(comfyui: Path, checkpoint: Path, options: list[str]) -> dict[str, torch.Tensor]:
    """What a server learns, asked for twice: the second time, nothing is trained."""
    common = {"model": ["load", 0], "image": ["latent", 0], "steps": 3, "seed": 4}
    with serve(comfyui, [checkpoint], options=options) as server, Client(server.url) as client:
        photograph = server.base / "photograph.png"
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photograph)
        prompt = {
            "load": node("CheckpointLoaderSimple", ckpt_name=checkpoint.name),
            "photograph": node("LoadImage", image=client.upload(photograph)),
            "latent": node("VAEEncode", pixels=["photograph", 0], vae=["load", 2]),
            "text": node("CLIPTextEncode", text="a sitting dog", clip=["load", 1]),
            "a": node("ImagicOptimizeEmbedding", target=["text", 0], learning_rate=1e-2, **common),
            "b": node(
                "ImagicFinetuneModel", optimized=["a", 0], learning_rate=1e-2, method="lora",
                rank=2, **common,
            ),
            "save": node(
                "ImagicSaveEdit", model=["load", 0], optimized=["a", 0], target=["text", 0],
                lora=["b", 1], filename_prefix="imagic/edit",
            ),
        }  # fmt: skip
        files = []
        for number in (1, 2):
            prompt["save"]["inputs"]["filename_prefix"] = f"imagic/edit {number}"
            client.run(prompt)
            (file,) = (server.base / "output" / "imagic").glob(f"edit {number}*.safetensors")
            with safe_open(file, "pt") as opened:
                assert json.loads(opened.metadata()["edit"])
                files.append({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    return files[0]


@pytest.fixture(scope="module")
def plain(comfyui_folder: Path, tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    return learned(comfyui_folder, tiny_checkpoint, [])


@pytest.mark.parametrize("name", list(OPTIONS)[1:])
def test_the_same_is_learned(
    comfyui_folder: Path, tiny_checkpoint: Path, plain: dict[str, torch.Tensor], name: str
) -> None:
    known = (comfyui_folder / "comfy" / "cli_args.py").read_text("utf-8")
    if f'"{OPTIONS[name][0]}"' not in known:
        pytest.skip(f"this ComfyUI has no {OPTIONS[name][0]}")
    found = learned(comfyui_folder, tiny_checkpoint, OPTIONS[name])
    assert found.keys() == plain.keys()
    for key, tensor in plain.items():
        # Of what rounding leaves of a gradient of nothing, a step makes a whole one.
        apart = (found[key].float() - tensor.float()).norm()
        assert apart <= 0.02 * tensor.float().norm(), key
