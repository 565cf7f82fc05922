"""The work of ``demo.py``, in the host's Python."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from demo import arguments
from machine.accelerators import accelerators
from machine.environment import MADE
from machine.host_process import serve
from miniature import build
from PIL import Image, ImageOps
from talk.api import PromptRejected
from talk.client import Client, Event, PromptFailed
from talk.workflow import find

from examples import ours
from examples.prompts import example
from examples.sheet import contact_sheet


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


def main() -> int:
    """Run the edit; return the exit code."""
    given = arguments()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = given.checkpoint or build.build(MADE / "models" / "miniature.safetensors")
    image = given.image or ours.photograph(given.out.parent)
    sentence = given.prompt or ours.SENTENCE
    etas = sorted({0.0, *given.eta})
    megapixels = given.megapixels if given.checkpoint else ours.MEGAPIXELS
    cpu = given.cpu or not accelerators()

    comfyui = Path(os.environ["COMFYUI_PATH"])
    started = time.monotonic()
    print(f"starting ComfyUI on {'the CPU' if cpu else 'the accelerator'} ...", flush=True)
    with serve(comfyui, [checkpoint], cpu=cpu) as server, Client(server.url) as client:
        changes: dict[str, dict[str, Any]] = {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint.name},
            "LoadImage": {"image": client.upload(image)},
            "ImageScaleToTotalPixels": {"megapixels": megapixels},
        }
        prompt = example(client, "imagic_edit", changes)
        target, _ = find(prompt, "ImagicOptimizeEmbedding")["target"]
        prompt[target]["inputs"]["text"] = sentence
        for node in prompt.values():
            if "seed" in node["inputs"]:
                node["inputs"]["seed"] = given.seed
        known = client.get("/object_info")
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
            (edited,) = (e for node in result.outputs for e in client.images(result, node))
            label = "eta 0 (reconstruction)" if eta == 0 else f"eta {eta:g}"
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
