"""What the tests run on: photographs of noise, and a finished run of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tedbench import benchmark
from tedbench.benchmark import Task
from tedbench.protocol import METHODS, Protocol
from tedbench.store import Store

TRAINED = {"steps": 2, "seed": 0, "recipe": "as set"}
RUN = Protocol(
    "no benchmark", "tiny.safetensors", TRAINED, TRAINED, size=64, etas=(0.0, 0.5, 1.0),
    strengths=(0.4, 0.8),
)  # fmt: skip


def png(seed: int, **text: str) -> bytes:
    """A picture of noise, with texts in it as ComfyUI writes them."""
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    return encoded(Image.fromarray(pixels), **text)


def encoded(picture: Image.Image, **text: str) -> bytes:
    """The picture as PNG, with texts in it."""
    about = PngImagePlugin.PngInfo()
    for name, value in text.items():
        about.add_text(name, value)
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=about)
    return content.getvalue()


def make_benchmark(folder: Path, count: int = 2) -> list[Task]:
    """A folder as TEdBench is, with photographs of noise."""
    (folder / "originals").mkdir(parents=True)
    listed = [
        {"img_name": f"pet{i}.png", "target_text": f"A photo of pet {i} sitting."}
        for i in range(count)
    ]
    for i, one in enumerate(listed):
        (folder / "originals" / one["img_name"]).write_bytes(png(1000 + i))
    (folder / "input_list.json").write_text(json.dumps(listed))
    return benchmark.read(folder)


def keep_all(kept: Store, edits: list[Task]) -> None:
    """Results of all methods: noise, different for each picture."""
    for e, edit in enumerate(edits):
        for m, method in enumerate(METHODS):
            pictures = {
                setting: png(100 * e + 10 * m + s, prompt=f"made by {method}")
                for s, setting in enumerate(RUN.settings(method))
            }
            kept.keep(edit, method, pictures, png(e, prompt="LoadImage"))
