"""What a saved edit tells of the graph, where nodes add others to it while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from families.tiny import NARROW_UNETS
from machine.environment import REPOSITORY
from machine.host_process import Server, serve
from PIL import Image
from safetensors import safe_open
from talk.api import Prompt, node
from talk.client import Client


@pytest.fixture(scope="module")
def expanding(comfyui_folder: Path, narrow_checkpoint: Path) -> Iterator[Server]:
    """A real server with a node that adds others."""
    packs = [REPOSITORY / "tests/host/expanding", NARROW_UNETS]
    with serve(comfyui_folder, [narrow_checkpoint], more_packs=packs) as running:
        yield running


def training_and_saving(checkpoint: str, photograph: str, name: str) -> Prompt:
    common = {"model": ["load", 0], "image": ["latent", 0], "steps": 2, "batch_size": 1}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "photograph": node("LoadImage", image=photograph),
        "latent": node("VAEEncode", pixels=["photograph", 0], vae=["load", 2]),
        "text": node("CLIPTextEncode", text=f"a sitting {name}", clip=["load", 1]),
        "a": node(
            "ImagicOptimizeEmbedding", target=["text", 0], learning_rate=1e-2, seed=7, **common
        ),
        "b": node(
            "ImagicFinetuneModel",
            optimized=["a", 0],
            method="lora",
            learning_rate=4e-2,
            seed=8,
            **common,
        ),
        "save": node(
            "ImagicSaveEdit",
            model=["load", 0],
            optimized=["a", 0],
            target=["text", 0],
            lora=["b", 1],
            filename_prefix=f"imagic/{name}",
        ),
    }


def moved(prompt: Prompt, *names: str) -> Prompt:
    """The prompt with these nodes added only while it runs."""
    inside = {name: prompt[name] for name in names}
    outside = {name: one for name, one in prompt.items() if name not in names}
    return outside | {"expand": node("TestExpand", body=json.dumps(inside))}


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("cat", [["save"]]),
        ("dog", [["a", "b", "save"]]),
        ("hen", [["load", "photograph", "latent", "text", "a", "b", "save"]]),
        ("owl", [["b", "save"], ["expand"]]),
    ],
)
def test_an_edit_tells_all_from_within(
    expanding: Server, narrow_checkpoint: Path, tmp_path: Path, name: str, levels: list[list[str]]
) -> None:
    """Saved by a node that was added: what it is linked to was queued, or added with it."""
    photograph = tmp_path / "photograph.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photograph)
    with Client(expanding.url) as client:
        prompt = training_and_saving(narrow_checkpoint.name, client.upload(photograph), name)
        for level in levels:
            prompt = moved(prompt, *level)
        client.run(prompt)
    (file,) = (expanding.base / "output" / "imagic").glob(f"{name}*.safetensors")
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["edit"])["about"]
    assert about["sentence"] == f"a sitting {name}"
    assert about["base_name"] == narrow_checkpoint.name
    assert about["ImagicOptimizeEmbedding"]["seed"] == 7
    assert about["ImagicFinetuneModel"]["seed"] == 8
