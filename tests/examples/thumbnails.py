"""The work of ``make_thumbnails.py``, in the host's Python.

Each workflow runs through a real server with the miniature in its checkpoint loader, the
miniature's size, guidance and learning rate, and a sentence that it knows; all else is as in the
workflow. Where a workflow needs more than that, its part below says what was done instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine.host_process import serve
from miniature import clip, world
from miniature.build import build
from miniature.upscaler.checkpoint import build_x4
from PIL import Image
from talk.api import Prompt
from talk.client import Client
from talk.workflow import nodes_of

from examples import ours
from examples.companions import build_upscaler
from examples.prompts import FOLDER, example, put
from examples.sheet import contact_sheet, save_small
from examples.workflows import ESRGAN, TITLES
from examples.workflows_models import X4

SOURCE = "a photo of a standing dog on the grass"
TARGET = ours.SENTENCE
ANOTHER = "a photo of a jumping dog on the grass"
CHECKPOINT = "miniature.safetensors"
CHANGES: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "LoadImage": {"image": "photograph.png"},
    "ImageScaleToTotalPixels": {"megapixels": ours.MEGAPIXELS},
    "KSampler": {"cfg": 3.0},
    "KSamplerAdvanced": {"cfg": 3.0},
}
CLIP = {"CLIPVisionLoader": "MiniatureClipVision", "CLIPLoader": "MiniatureClip"}
SMALL_CLIP = Path(__file__).parent / "small_clip"
# The sentence says little that the small picture does not show.
X4_GUIDANCE = 1.0
# In this order the server's cache spares all but the first the training; flux alone learns anew,
# under its guidance.
GUIDE = "../web/docs/eta"


class Studio:
    """A server with the miniature, and a photograph of its world."""

    def __init__(self, client: Client, photograph: Image.Image) -> None:
        self.client, self.photograph = client, photograph

    def prompt(self, name: str, sentences: list[str], changes: dict[str, Any]) -> Prompt:
        """The workflow, with the first of its texts as given."""
        both = {k: CHANGES.get(k, {}) | changes.get(k, {}) for k in CHANGES | changes}
        prompt = example(self.client, name, both)
        # A sentence that several nodes share becomes each one's own, as in the other workflows,
        # for the cache to know it.
        shared = [[node, 0] for node in nodes_of(prompt, "PrimitiveStringMultiline")]
        for node in prompt.values():
            own = {k: sentences[0] for k, value in node["inputs"].items() if value in shared}
            node["inputs"].update(own)
        for key, sentence in zip(nodes_of(prompt, "CLIPTextEncode"), sentences, strict=False):
            prompt[key]["inputs"]["text"] = sentence
        return prompt

    def run(self, prompt: Prompt, *kinds: str) -> list[Image.Image]:
        """The pictures of all nodes of these types, in the order of the workflow."""
        result = self.client.run(prompt, timeout=3600)
        return [
            image
            for kind in kinds
            for node in nodes_of(prompt, kind)
            if node in result.outputs
            for image in self.client.images(result, node)
        ]

    def beside(
        self, name: str, *labels: str, texts: tuple[str, ...] = (TARGET,), **changes: Any
    ) -> Image.Image:
        """The photograph, and beside it what the workflow saves; {eta} in a label is its own."""
        prompt = self.prompt(name, list(texts), changes)
        for node in nodes_of(prompt, "ImagicInterpolateConditioning"):
            eta = prompt[node]["inputs"]["eta"]
            labels = tuple(label.format(eta=f"eta {eta:g}") for label in labels)
        tiles = [
            ("input", self.photograph), *zip(labels, self.run(prompt, "SaveImage"), strict=True)
        ]  # fmt: skip
        return contact_sheet(tiles, texts[-1])


def choosing_eta(studio: Studio) -> Image.Image:
    """The README's three: too low, right, too high."""
    tiles = [("input", studio.photograph)]
    for eta, verdict in ((0.2, "too low"), (0.7, "right"), (2.0, "too high")):
        at = {"ImagicInterpolateConditioning": {"eta": eta}}
        prompt = studio.prompt("imagic_edit", [TARGET], at)
        (picture,) = studio.run(prompt, "SaveImage")
        tiles.append((f"eta {eta:g}: {verdict}", picture))
    return contact_sheet(tiles, TARGET)


def eta_sheet(studio: Studio) -> Image.Image:
    """The workflow's own sheet."""
    (sheet,) = studio.run(studio.prompt("imagic_eta_sheet", [TARGET], {}), "SaveImage")
    return sheet


def find_eta(studio: Studio) -> Image.Image:
    """The photograph and the picture of the eta that was found, over both of the sheets."""
    prompt = studio.prompt("imagic_find_eta", [TARGET], {})
    coarse, fine, chosen = studio.run(prompt, "ImagicContactSheet", "SaveImage")
    tiles = [("input", studio.photograph), ("found", chosen)]
    pair = contact_sheet(tiles, TARGET)
    sheets = [sheet.resize((960, sheet.height * 960 // sheet.width)) for sheet in (coarse, fine)]
    whole = Image.new("RGB", (960, pair.height + sum(s.height for s in sheets)), "white")
    whole.paste(pair, ((960 - pair.width) // 2, 0))
    for place, sheet in enumerate(sheets):
        whole.paste(sheet, (0, pair.height + place * sheets[0].height))
    return whole


def with_clip(prompt: Prompt) -> Prompt:
    """The prompt with the CLIP that knows the miniature's world."""
    for kind, ours_of in CLIP.items():
        (key,) = nodes_of(prompt, kind)
        prompt[key] = {"class_type": ours_of, "inputs": {}}
    return prompt


def choose_eta(studio: Studio) -> Image.Image:
    """With the CLIP that knows the miniature's world."""
    prompt = with_clip(studio.prompt("imagic_choose_eta", [TARGET], {}))
    curves, chosen = studio.run(prompt, "ImagicScoreEdits", "SaveImage")
    both = Image.new("RGB", (curves.width + 240, curves.height), "white")
    both.paste(curves, (0, 0))
    for place, picture in enumerate((studio.photograph, chosen)):
        both.paste(picture.resize((220, 220)), (curves.width, 20 + 240 * place))
    return both


def upscale(studio: Studio) -> Image.Image:
    """With an upscale model that interpolates, and a smaller step.

    The miniature has seen one size only, and soon draws a second animal into a larger picture.
    """
    smaller = {"ImageScaleBy": {"scale_by": 0.28125}}
    prompt = studio.prompt("imagic_upscale", [TARGET], smaller)
    prompt[nodes_of(prompt, "KSampler")[1]]["inputs"]["denoise"] = 0.08
    pictures = studio.run(prompt, "SaveImage")
    labels = ("input", "edit", "enlarged, drawn over")
    return contact_sheet(list(zip(labels, (studio.photograph, *pictures), strict=True)), TARGET)


def cascade(studio: Studio) -> Image.Image:
    """With the upscaler of the miniature's world, which makes 128 px of 32 px."""
    prompt = studio.prompt("imagic_cascade", [TARGET], {"ImageScaleBy": {"scale_by": 0.25}})
    _, upscaler = nodes_of(prompt, "CheckpointLoaderSimple")
    prompt[upscaler]["inputs"]["ckpt_name"] = X4["name"]
    _, drawing = nodes_of(prompt, "KSampler")
    prompt[drawing]["inputs"]["cfg"] = X4_GUIDANCE
    _, small = nodes_of(prompt, "ImageScaleBy")
    prompt["small"] = {"class_type": "PreviewImage", "inputs": {"images": [small, 0]}}
    before, after = studio.run(prompt, "PreviewImage", "SaveImage")
    seen = before.resize(after.size, Image.Resampling.NEAREST)
    tiles = [("input", studio.photograph), ("edit, made small", seen), ("enlarged", after)]
    return contact_sheet(tiles, TARGET)


def text2live(studio: Studio) -> Image.Image:
    """Another coat, and where it was painted."""
    colour, other = clip.colour_of(world.identity("heldout", 7)), "yellow"
    says = "a photo of a standing {} dog on the grass"
    sentence, layer = says.format(other), f"a photo of a {other} dog"
    how = {
        "text": sentence, "source_text": says.format(colour), "layer_text": layer,
        "region_text": f"a photo of a {colour} dog",
    }  # fmt: skip
    prompt = with_clip(studio.prompt("baseline_text2live", [], {"ImagicText2Live": how}))
    edit, painted = studio.run(prompt, "SaveImage", "PreviewImage")
    tiles = [("input", studio.photograph), ("Text2LIVE", edit), ("where it was painted", painted)]
    return contact_sheet(tiles, sentence)


PICTURES: dict[str, Callable[[Studio], Image.Image]] = {
    "imagic_edit": lambda s: s.beside("imagic_edit", "{eta}"),
    "imagic_app": lambda s: s.beside("imagic_app", "{eta}"),
    "imagic_inversion": lambda s: s.beside("imagic_inversion", "{eta}"),
    GUIDE: choosing_eta,
    "imagic_eta_sheet": eta_sheet,
    "imagic_find_eta": find_eta,
    "imagic_choose_eta": choose_eta,
    "imagic_upscale": upscale,
    "imagic_sdxl": lambda s: s.beside("imagic_sdxl", "{eta}"),
    "imagic_cascade": cascade,
    # The edit that the sheet has saved.
    "imagic_reuse": lambda s: s.beside("imagic_reuse", "{eta}, nothing trained", texts=(ANOTHER,)),
    # With the miniature in it, which has a cfg and no guidance of Flux's, and draws another dog in
    # the fewer steps that are enough for Flux.
    "imagic_flux": lambda s: s.beside(
        "imagic_flux", "{eta}", KSampler={"steps": 30, "scheduler": "normal"}
    ),
    "baseline_sdedit": lambda s: s.beside("baseline_sdedit", "SDEdit, denoise 0.6"),
    "baseline_ddib": lambda s: s.beside("baseline_ddib", "DDIB", texts=(SOURCE, TARGET)),
    "baseline_text2live": text2live,
    "../web/docs/ImagicText2Live": text2live,
}
"""By name, in the order that makes use of the server's cache."""


def main(names: list[str]) -> None:
    """Write the thumbnails of these names, or all."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory() as made:
        checkpoint = build(Path(made) / CHECKPOINT)
        upscaler = build_upscaler(Path(made) / ESRGAN["name"])
        with (
            serve(
                comfyui, [checkpoint, build_x4(Path(made) / X4["name"])], more_packs=[SMALL_CLIP]
            ) as server,
            Client(server.url) as client,
        ):
            put(upscaler, server.base / "models/upscale_models" / upscaler.name)
            photograph = Image.open(ours.photograph(server.base / "input"))
            studio = Studio(client, photograph)
            for name, picture in PICTURES.items():
                if not names or name in names:
                    started = time.monotonic()
                    save_small(picture(studio), FOLDER / f"{TITLES.get(name, name)}.jpg")
                    print(f"{name} {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
