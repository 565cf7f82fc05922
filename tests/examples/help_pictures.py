"""The work of ``make_help_pictures.py``, in the host's Python.

A real server draws them with the miniature, which is trained once: one photograph, one sentence,
one seed for all.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from machine.environment import REPOSITORY
from machine.host_process import serve
from miniature.build import build
from PIL import Image
from talk.api import Prompt
from talk.client import Client

from examples import ours
from examples.sheet import contact_sheet, save_small

DOCS = REPOSITORY / "web" / "docs"
TARGET = ours.SENTENCE
ANOTHER = "a photo of a jumping dog on the grass"
CHECKPOINT = "miniature.safetensors"
SMALL_CLIP = Path(__file__).parent / "small_clip"

Wire = list[Any]


class Studio:
    """A server, and the graph up to what was learned, which the server's cache keeps."""

    def __init__(self, client: Client, photograph: Image.Image) -> None:
        self.client, self.photograph = client, photograph
        self.prompt: Prompt = {}
        self.ids = map(str, count(1))
        loader = self.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        self.loaded, self.clip, self.vae = ([loader, i] for i in range(3))
        image = self.add("LoadImage", image="photograph.png")
        self.image: Wire = [image, 0]
        self.latent: Wire = [self.add("VAEEncode", pixels=self.image, vae=self.vae), 0]
        self.target, self.negative, self.another = map(self.text, (TARGET, "", ANOTHER))
        common = {"model": self.loaded, "image": self.latent, "seed": 0}
        stage = self.add(
            "ImagicOptimizeEmbedding", target=self.target, steps=40, learning_rate=6e-2, **common
        )
        self.optimized: Wire = [stage, 0]
        stage = self.add(
            "ImagicFinetuneModel", optimized=self.optimized, method="lora", steps=60,
            learning_rate=6e-2, **common,
        )  # fmt: skip
        self.tuned, self.lora = ([stage, i] for i in range(2))

    def add(self, kind: str, **inputs: Any) -> str:
        """Add a node to the graph; returns its id."""
        key = next(self.ids)
        self.prompt[key] = {"class_type": kind, "inputs": inputs}
        return key

    def text(self, sentence: str) -> Wire:
        """A sentence as CONDITIONING."""
        return [self.add("CLIPTextEncode", clip=self.clip, text=sentence), 0]

    def at(self, eta: float) -> Wire:
        """Stage C."""
        inputs = {"target": self.target, "optimized": self.optimized, "eta": eta}
        return [self.add("ImagicInterpolateConditioning", **inputs), 0]

    def sampled(self, model: Wire, positive: Wire, sampler: str = "euler_ancestral") -> Wire:
        """Drawn from the one seed; IMAGE."""
        latent = self.add(
            "KSampler", model=model, positive=positive, negative=self.negative,
            latent_image=self.latent, seed=0, steps=30, cfg=3.0, sampler_name=sampler,
            scheduler="normal", denoise=1.0,
        )  # fmt: skip
        return [self.add("VAEDecode", samples=[latent, 0], vae=self.vae), 0]

    def pictures(self, *images: Wire) -> list[Image.Image]:
        """Run, and return what is wired as pictures."""
        shown = [self.add("PreviewImage", images=image) for image in images]
        result = self.client.run(self.prompt, timeout=3600)
        found = [self.client.pictures(result, key) for key in shown]
        for key in shown:
            del self.prompt[key]
        return [Image.open(io.BytesIO(one)).convert("RGB") for many in found for one in many]

    def strip(self, *tiles: tuple[str, Wire, Wire], sentence: str = TARGET) -> Image.Image:
        """The photograph, and beside it what each model draws under its conditioning."""
        drawn = self.pictures(*(self.sampled(model, positive) for _, model, positive in tiles))
        labels = [label for label, *_ in tiles]
        named = [("your photograph", self.photograph), *zip(labels, drawn, strict=True)]
        return contact_sheet(named, sentence)

    def swept(self, model: Wire, start: float, stop: float, many: int) -> tuple[Wire, Wire]:
        """The pictures of a sweep, and its etas."""
        sweep = self.add(
            "ImagicEtaSweep", target=self.target, optimized=self.optimized, start=start, stop=stop,
            count=many,
        )  # fmt: skip
        return self.sampled(model, [sweep, 0]), [sweep, 1]

    def sheet(self, images: Wire, etas: Wire, **more: Any) -> Image.Image:
        """A contact sheet of the node's own."""
        inputs = {"images": images, "etas": etas, "original": self.image, "tile_size": 320}
        (picture,) = self.pictures([self.add("ImagicContactSheet", **inputs, **more), 0])
        return picture


def optimize(s: Studio) -> Image.Image:
    """What the embedding does before the model learns anything."""
    return s.strip(("your sentence", s.loaded, s.target), ("optimized", s.loaded, s.optimized))


def finetune(s: Studio) -> Image.Image:
    """What the embedding could not hold."""
    alone = ("embedding alone", s.loaded, s.optimized)
    return s.strip(alone, ("with the fine-tuned model", s.tuned, s.optimized))


def interpolate(s: Studio) -> Image.Image:
    """Too low, right, too high."""
    verdicts = {0.2: "too low", 0.7: "right", 2.0: "too high"}
    return s.strip(*((f"eta {e:g}: {v}", s.tuned, s.at(e)) for e, v in verdicts.items()))


def project(s: Studio) -> Image.Image:
    """The edit's strength alone."""
    tiles = []
    for edit in (0.5, 1.0, 1.5):
        inputs = {"target": s.target, "optimized": s.optimized, "identity": 1.0, "edit": edit}
        mixed = s.add("ImagicProjectConditioning", **inputs)
        tiles.append((f"identity 1, edit {edit:g}", s.tuned, [mixed, 0]))
    return s.strip(*tiles)


def noise(s: Studio) -> Image.Image:
    """From a seed's noise to the photograph's own."""
    labels, drawn = [], []
    for share in (0.0, 0.5, 1.0):
        inputs = {"as_loaded": s.loaded, "optimized": s.optimized, "image": s.latent}
        model = s.add("ImagicPhotographNoise", model=s.tuned, share=share, **inputs)
        drawn.append(s.sampled([model, 0], s.at(1.1), "euler"))
        labels.append(f"share {share:g}")
    tiles = zip(labels, s.pictures(*drawn), strict=True)
    return contact_sheet([("your photograph", s.photograph), *tiles], TARGET)


def strength(s: Studio) -> Image.Image:
    """All parts turned down together."""
    tiles = []
    for much in (1.0, 0.5, 0.0):
        inputs = dict.fromkeys(("encoder", "middle", "decoder"), much)
        model = s.add("ImagicFinetuneStrength", model=s.loaded, lora=s.lora, **inputs)
        tiles.append((f"all parts {much:g}", [model, 0], s.at(0.7)))
    return s.strip(*tiles)


def sweep(s: Studio) -> Image.Image:
    """A range of eta."""
    return s.sheet(*s.swept(s.tuned, 0.0, 1.0, 6))


def compared(s: Studio) -> Image.Image:
    """The same, above it the model as loaded."""
    images, etas = s.swept(s.tuned, 0.0, 1.0, 6)
    return s.sheet(images, etas, pretrained=s.swept(s.loaded, 0.0, 1.0, 6)[0])


def scores(s: Studio) -> Image.Image:
    """With the CLIP that knows the miniature's world."""
    images, etas = s.swept(s.tuned, 0.1, 1.0, 10)
    vision, clip = s.add("MiniatureClipVision"), s.add("MiniatureClip")
    score = s.add(
        "ImagicScoreEdits", images=images, original=s.image, etas=etas, text=TARGET,
        clip_vision=[vision, 0], clip=[clip, 0],
    )  # fmt: skip
    curves, chosen = s.pictures([score, 0], [score, 3])
    both = Image.new("RGB", (curves.width + 240, curves.height), "white")
    both.paste(curves, (0, 0))
    for place, picture in enumerate((s.photograph, chosen)):
        both.paste(picture.resize((220, 220)), (curves.width, 20 + 240 * place))
    return both


def saved(s: Studio) -> Image.Image:
    """What it hands on draws the edit."""
    keep = s.add(
        "ImagicSaveEdit", model=s.loaded, optimized=s.optimized, target=s.target, lora=s.lora,
        filename_prefix="imagic/edit",
    )  # fmt: skip
    picture = s.strip(("as saved, eta 0.7", [keep, 0], s.at(0.7)))
    del s.prompt[keep]
    return picture


def loaded(s: Studio) -> Image.Image:
    """The file of ``saved``, with its own sentence and with another one."""
    tiles = []
    for label, more in (("as saved", {}), ("another sentence", {"target": s.another})):
        name = "imagic/edit_00001_.safetensors [output]"
        edit = s.add("ImagicLoadEdit", model=s.loaded, edit=name, **more)
        wires = {"target": [edit, 2], "optimized": [edit, 1], "eta": 0.7}
        tiles.append((label, [edit, 0], [s.add("ImagicInterpolateConditioning", **wires), 0]))
    return s.strip(*tiles, sentence=ANOTHER)


PICTURES: dict[str, Callable[[Studio], Image.Image]] = {
    "ImagicOptimizeEmbedding": optimize,
    "ImagicFinetuneModel": finetune,
    "eta": interpolate,
    "ImagicProjectConditioning": project,
    "ImagicPhotographNoise": noise,
    "ImagicFinetuneStrength": strength,
    "ImagicEtaSweep": sweep,
    "ImagicContactSheet": compared,
    "ImagicScoreEdits": scores,
    "ImagicSaveEdit": saved,
    "ImagicLoadEdit": loaded,
}


def main(names: list[str]) -> None:
    """Write the pictures of these names, or all."""
    with tempfile.TemporaryDirectory() as made:
        checkpoint = build(Path(made) / CHECKPOINT)
        comfyui = Path(os.environ["COMFYUI_PATH"])
        with (
            serve(comfyui, [checkpoint], more_packs=[SMALL_CLIP]) as server,
            Client(server.url) as client,
        ):
            photograph = Image.open(ours.photograph(server.base / "input"))
            studio = Studio(client, photograph)
            for name, picture in PICTURES.items():
                if not names or name in names:
                    save_small(picture(studio), DOCS / f"{name}.jpg")
                    print(f"{name}.jpg", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
