"""The work of ``demo.py``, in the host's Python."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from demo import arguments
from machine.environment import MADE, REPOSITORY
from machine.host_process import serve
from miniature import build, world
from PIL import Image, ImageDraw, ImageFont, ImageOps
from talk.client import Client, Event, PromptFailed, PromptRejected
from talk.workflow import find, to_prompt

from examples.prompts import file_of

OUR_SENTENCE = "a photo of a sitting dog on the grass"
OUR_MEGAPIXELS = 128 * 128 / 1024**2
TILE = 320


class Terminal:
    """Tells which node runs, and how far it is."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.node = ""
        self.started = time.monotonic()
        self.told = -1

    def __call__(self, event: Event) -> None:
        """Show one message of the server."""
        if event.type == "executing":
            self._end_line()
            self.node, self.started, self.told = event.data["node"] or "", time.monotonic(), -1
        elif event.type == "progress" and event.data["node"] == self.node:
            self._show(event.data["value"], event.data["max"])

    def _show(self, step: int, steps: int) -> None:
        tenth = 10 * step // steps
        if sys.stdout.isatty():
            filled = "#" * (3 * tenth)
            line = f"\r  {self.names[self.node]:26} [{filled:30}] step {step} of {steps}"
            print(line, end="", flush=True)
        elif tenth != self.told:
            print(f"  {self.names[self.node]:26} step {step} of {steps}", flush=True)
        self.told = tenth

    def _end_line(self) -> None:
        if self.told >= 0 and sys.stdout.isatty():
            print(f"  {time.monotonic() - self.started:.0f} s", flush=True)


def our_photograph(folder: Path) -> Path:
    """Draw a picture of an animal that the miniature was not trained on."""
    who = world.identity("heldout", 7)
    drawn = world.render(who, world.Attributes("standing", "grass", "none"))
    file = folder / "photograph.png"
    Image.fromarray(drawn).save(file)
    return file


def contact_sheet(tiles: list[tuple[str, Image.Image]], sentence: str) -> Image.Image:
    """Put labelled pictures side by side, four in a row, under the sentence."""
    font = ImageFont.load_default(18)
    columns = min(4, len(tiles))
    shape = tiles[0][1]
    height = round(TILE * shape.height / shape.width)
    rows = math.ceil(len(tiles) / columns)
    step_x, step_y, top = TILE + 12, height + 40, 44
    sheet = Image.new("RGB", (12 + columns * step_x, top + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 12), f"“{sentence}”", fill="black", font=font)
    for index, (label, picture) in enumerate(tiles):
        x, y = 12 + index % columns * step_x, top + index // columns * step_y
        sheet.paste(ImageOps.fit(picture, (TILE, height), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + height + 6), label, fill="black", font=font)
    return sheet


def has_accelerator() -> bool:
    """Whether ComfyUI has something faster than the CPU to run on."""
    xpu = getattr(torch, "xpu", None)
    return bool(
        torch.cuda.is_available() or torch.backends.mps.is_available() or xpu and xpu.is_available()
    )


def main() -> int:
    """Run the edit; return the exit code."""
    given = arguments()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = given.checkpoint or build.build(MADE / "models" / "miniature.safetensors")
    image = given.image or our_photograph(given.out.parent)
    sentence = given.prompt or OUR_SENTENCE
    etas = sorted({0.0, *given.eta})
    megapixels = given.megapixels if given.checkpoint else OUR_MEGAPIXELS
    cpu = given.cpu or not has_accelerator()

    comfyui = Path(os.environ["COMFYUI_PATH"])
    started = time.monotonic()
    print(f"starting ComfyUI on {'the CPU' if cpu else 'the accelerator'} ...", flush=True)
    with (
        serve(comfyui, Path(sys.executable), REPOSITORY, [checkpoint], cpu=cpu) as server,
        Client(server.url) as client,
    ):
        known = client.get("/object_info")
        prompt = to_prompt(json.loads(file_of("imagic_edit").read_text("utf-8")), known)
        find(prompt, "CheckpointLoaderSimple")["ckpt_name"] = checkpoint.name
        find(prompt, "LoadImage")["image"] = client.upload(image)
        find(prompt, "ImageScaleToTotalPixels")["megapixels"] = megapixels
        target, _ = find(prompt, "ImagicOptimizeEmbedding")["target"]
        prompt[target]["inputs"]["text"] = sentence
        if not given.checkpoint:
            find(prompt, "ImagicFinetuneModel")["learning_rate"] = build.LORA_RATE
        for node in prompt.values():
            if "seed" in node["inputs"]:
                node["inputs"]["seed"] = given.seed
        terminal = Terminal(
            {key: known[node["class_type"]]["display_name"] for key, node in prompt.items()}
        )
        original = ImageOps.exif_transpose(Image.open(image)).convert("RGB")
        tiles = [("input", original)]
        for eta in etas:
            # One prompt each: ComfyUI's cache keeps what was trained for the first.
            print(f"editing {image.name} to “{sentence}” with eta {eta:g}", flush=True)
            find(prompt, "ImagicInterpolateConditioning")["eta"] = eta
            try:
                result = client.run(prompt, terminal, timeout=3600)
            except (PromptRejected, PromptFailed) as failed:
                print(f"\n{failed}", file=sys.stderr)
                return 1
            (picture,) = (entry for node in result.outputs.values() for entry in node["images"])
            label = "eta 0 (reconstruction)" if eta == 0 else f"eta {eta:g}"
            edited = Image.open(io.BytesIO(client.picture(picture))).convert("RGB")
            tiles.append((label, edited))
    contact_sheet(tiles, sentence).save(given.out)
    print(f"done in {time.monotonic() - started:.0f} s; the pictures: {given.out.absolute()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ncancelled", file=sys.stderr)
        sys.exit(130)
