"""The example workflow through the real server: real photographs, and the same result again."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from client import Client
from environment import REPOSITORY
from host_process import serve
from PIL import Image
from safetensors.torch import load_file
from workflow import find, to_prompt

from host import imagic

# Of different sizes and modes, from 256 to 1250 pixels.
PHOTOGRAPHS = ("dog2_standing.png", "giraffe.jpeg", "chibi.jpeg", "tennis_ball.jpeg", "cat.jpeg")


def quick_edit(client: Client, checkpoint: Path, image: Path, megapixels: float = 0.02) -> dict:
    """The example workflow with one step of everything, on a picture of the caller's."""
    workflow = json.loads((REPOSITORY / "example_workflows" / "imagic_edit.json").read_text())
    prompt = to_prompt(workflow, client.get("/object_info"))
    find(prompt, "CheckpointLoaderSimple")["ckpt_name"] = checkpoint.name
    find(prompt, "LoadImage")["image"] = client.upload(image)
    find(prompt, "ImageScaleToTotalPixels")["megapixels"] = megapixels
    for node in ("ImagicOptimizeEmbedding", "ImagicFinetuneModel"):
        find(prompt, node).update(steps=2, batch_size=1)
    find(prompt, "KSampler")["steps"] = 1
    return prompt


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    file = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("shape", ["as it is", "cropped to 3:2"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_real_photographs_keep_their_aspect_ratio(
    client, tiny_checkpoint, tedbench, tmp_path, name, shape
):
    file = tedbench / "originals" / name
    with Image.open(file) as original:
        width, height = original.size
        if shape != "as it is":
            height = width * 2 // 3
            file = tmp_path / name
            original.crop((0, 0, width, height)).save(file)
    prompt = quick_edit(client, tiny_checkpoint, file)
    result = client.run(prompt)
    (saved,) = (client.pictures(result, node) for node in result.outputs)
    edit = Image.open(io.BytesIO(saved[0]))
    # The autoencoder works on multiples of 8 pixels.
    assert abs(edit.width - edit.height * width / height) <= 8 * (1 + width / height)
    assert edit.width % 8 == edit.height % 8 == 0


def test_a_fresh_process_learns_and_draws_the_same(
    server, client, comfyui_folder, tiny_checkpoint, photograph
):
    def run(server, client):
        prompt = quick_edit(client, tiny_checkpoint, photograph)
        (tuner,) = (k for k, n in prompt.items() if n["class_type"] == "ImagicFinetuneModel")
        mix = find(prompt, "ImagicInterpolateConditioning")
        prompt["save"] = {
            "class_type": "ImagicSaveEdit",
            "inputs": {
                "model": prompt[tuner]["inputs"]["model"],
                "optimized": mix["optimized"],
                "target": mix["target"],
                "lora": [tuner, 1],
                "filename_prefix": "imagic/learned",
            },
        }
        result = client.run(prompt)
        (saved,) = (client.pictures(result, node) for node in result.outputs if node != "save")
        (file,) = (server.base / "output" / "imagic").glob("learned*.safetensors")
        edit = load_file(file)
        # Of a LoRA's two matrices the one that starts at nothing.
        lora = [edit[key] for key in sorted(edit) if key.endswith("lora_down.weight")]
        moved = edit["optimized.tokens"] - edit["target.tokens"]
        return np.asarray(Image.open(io.BytesIO(saved[0])), int), [moved], lora

    picture, *learned = run(server, client)
    with (
        serve(comfyui_folder, Path(sys.executable), REPOSITORY, [tiny_checkpoint]) as fresh,
        Client(fresh.url) as other,
    ):
        picture_again, *learned_again = run(fresh, other)
    # Not to the bit: a process may add up in another order, of which Adam and the picture's
    # saturated colours make whole steps here and there.
    for found, expected in zip(learned_again, learned, strict=True):
        assert imagic.apart(found, expected) < 0.02
    assert (abs(picture_again - picture) > 1).mean() < 1e-3


def test_loading_the_pack_changes_nothing_in_the_host(pack, changed_by_loading):
    assert changed_by_loading == []


def test_the_pack_loads_without_a_warning(server):
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "custom_nodes/ComfyUI-Imagic" in log.replace("\\", "/"), "the log tells what was loaded"
    told = [line for line in log.splitlines() if "imagic" in line.lower()]
    assert not [line for line in told if re.search("warn|error|fail", line, re.IGNORECASE)]
    assert "IMPORT FAILED" not in log
