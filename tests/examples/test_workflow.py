"""The example workflow through the real server: real photographs, and the same result again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from families.tiny import NARROW_UNETS
from host import given
from machine.host_process import serve
from PIL import Image
from safetensors.torch import load_file
from talk.api import Prompt
from talk.client import Client
from talk.workflow import find

from examples.canvas import PACKS
from examples.prompts import FOLDER, QUICK, example

# Of different sizes and modes, from 256 to 1250 pixels.
PHOTOGRAPHS = ("dog2_standing.png", "giraffe.jpeg", "chibi.jpeg", "tennis_ball.jpeg", "cat.jpeg")


def quick_edit(client: Client, checkpoint: Path, image: Path) -> Prompt:
    """The shortest example with one step of sampling, on a picture of the caller's."""
    changes = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint.name},
        "LoadImage": {"image": client.upload(image)},
        "ImageScaleToTotalPixels": {"megapixels": 0.02},
        "KSampler": {"steps": 1},
    }
    return example(client, "imagic_edit", QUICK | changes)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    file = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("shape", ["as it is", "cropped to 3:2"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_real_photographs_keep_their_aspect_ratio(
    client, narrow_checkpoint, tedbench, tmp_path, name, shape
):
    file = tedbench / "originals" / name
    with Image.open(file) as original:
        width, height = original.size
        if shape != "as it is":
            height = width * 2 // 3
            file = tmp_path / name
            original.crop((0, 0, width, height)).save(file)
    prompt = quick_edit(client, narrow_checkpoint, file)
    result = client.run(prompt)
    ((edit,),) = (client.images(result, node) for node in result.outputs)
    # The autoencoder works on multiples of 8 pixels.
    assert abs(edit.width - edit.height * width / height) <= 8 * (1 + width / height)
    assert edit.width % 8 == edit.height % 8 == 0


def test_a_fresh_process_learns_and_draws_the_same(
    server, client, comfyui_folder, narrow_checkpoint, photograph
):
    def run(server, client):
        prompt = quick_edit(client, narrow_checkpoint, photograph)
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
        ((saved,),) = (client.images(result, node) for node in result.outputs if node != "save")
        (file,) = (server.base / "output" / "imagic").glob("learned*.safetensors")
        edit = load_file(file)
        # Of a LoRA's two matrices the one that starts at nothing.
        lora = [edit[key] for key in sorted(edit) if key.endswith("lora_down.weight")]
        moved = edit["optimized.tokens"] - edit["target.tokens"]
        return np.asarray(saved, int), [moved], lora

    picture, *learned = run(server, client)
    with (
        serve(comfyui_folder, [narrow_checkpoint], more_packs=[NARROW_UNETS]) as fresh,
        Client(fresh.url) as other,
    ):
        picture_again, *learned_again = run(fresh, other)
    # Not to the bit: a process may add up in another order, of which Adam and the picture's
    # saturated colours make whole steps here and there.
    for found, expected in zip(learned_again, learned, strict=True):
        assert given.apart(found, expected) < 0.02
    assert (abs(picture_again - picture) > 1).mean() < 1e-3


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_the_manager_finds_every_node_that_is_missing(file: Path) -> None:
    workflow = json.loads(file.read_text("utf-8"))
    inside = workflow.get("definitions", {}).get("subgraphs", [])
    boxes = {one["id"] for one in inside}
    for node in [*workflow["nodes"], *(node for one in inside for node in one["nodes"])]:
        # The front end's own, and boxes that are in the file.
        if node["type"] in {"MarkdownNote", "Note", "Reroute"} | boxes:
            continue
        pack = PACKS["ours" if node["type"].startswith("Imagic") else "core"]["cnr_id"]
        assert node["properties"].get("cnr_id") == pack, node["type"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"]), node["type"]
