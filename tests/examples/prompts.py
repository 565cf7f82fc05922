"""The example workflows as tests and tools use them: as prompts, with files that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from machine.environment import REPOSITORY
from machine.host_process import put_file
from talk.api import Prompt
from talk.client import Client, Result
from talk.workflow import nodes_of, to_prompt

from examples.workflows import EDIT_FILE, TITLES, WORKFLOWS

FOLDER = REPOSITORY / "example_workflows"
BLUEPRINT_FOLDER = REPOSITORY / "subgraphs"
# A few latent pixels and two steps: what is asked here is that it runs, not what it draws.
QUICK: dict[str, dict[str, Any]] = {
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "ImagicOptimizeEmbedding": {"steps": 2, "batch_size": 1, "keep": False},
    "ImagicFinetuneModel": {"steps": 2, "batch_size": 1, "keep": False},
    "ImagicEtaSweep": {"count": 3},
    "KSampler": {"steps": 2},
    "KSamplerAdvanced": {"steps": 2},
    "BasicScheduler": {"steps": 2},
    "ImagicText2Live": {"steps": 1, "views": 1},
}


def file_of(name: str) -> Path:
    """Where the workflow of that name lies."""
    return FOLDER / f"{TITLES[name]}.json"


def example(client: Client, name: str, changes: dict[str, dict[str, Any]] = QUICK) -> Prompt:
    """The workflow of that name as a prompt, with ``changes`` to the inputs of node types."""
    workflow = json.loads(file_of(name).read_text("utf-8"))
    prompt = to_prompt(workflow, client.get("/object_info"))
    for node in prompt.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return prompt


def drawn(client: Client, prompt: Prompt, result: Result) -> np.ndarray:
    """The one picture that the workflow saves, uint8 [H, W, 3]."""
    (saver,) = nodes_of(prompt, "SaveImage")
    (image,) = client.images(result, saver)
    return np.asarray(image)


def models_of(name: str) -> set[tuple[str, str]]:
    """Folder and name of each model that a workflow names."""
    nodes = WORKFLOWS[name]().nodes
    return {(model["directory"], model["name"]) for node in nodes for model in node["models"]}


def stock(base: Path, names: list[str], model: Path) -> None:
    """Make ``model`` appear wherever the workflows of these names expect one."""
    for folder, file in sorted(set().union(*map(models_of, names))):
        put(model, base / "models" / folder / file)


def put(source: Path, target: Path) -> None:
    """Make a file appear at ``target``, unless there is one."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        put_file(source, target)


def edit_file(base: Path) -> Path:
    """Where the server with this base directory looks for the edit of ``imagic_reuse``."""
    return base / "output" / EDIT_FILE.removesuffix(" [output]")


def saved_pictures(base: Path) -> set[Path]:
    """What the server with this base directory has saved."""
    return set((base / "output").glob("**/*.png"))
