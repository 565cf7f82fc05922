"""What the cascade's second model keeps of a photograph's fine detail, with and without learning.

    python tests/benchmarks/cascade.py [--json OUT.json] [--sheet OUT.png] [--edits N]
                     [--part K/N | --merge PARTS] [--readme]

The paper's version with Imagen: a base model edits, and a super-resolution model that was
fine-tuned on the photograph under the target sentence draws the result larger. Here the miniature
edits held-out pictures at 128 px, the edit is made small, 32 px, and enlarged to 128 px again: by
repeating pixels, by bicubic interpolation, and by the upscaler of the miniature's world, as loaded
and fine-tuned. The same from the true result made small, which leaves the base model's errors
out. Both networks run on their living channels alone; all settings are the nodes' own but those
below.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import numpy as np
import torch
from miniature import metrics
from miniature.edits import KnownEdit, edits
from miniature.upscaler.checkpoint import build_x4
from PIL import Image

from benchmarks import command, living
from benchmarks.counterfactual import (
    DEFAULT_ETA,
    IMAGIC,
    Host,
    image_of,
    learn,
    mixes,
    picture_of,
)

SEEDS = (11, 12)
# The example's noise on the small picture, and no guidance: a sentence says little that the small
# picture does not show.
STEPS, GUIDANCE, NOISE = 30, 1.0, 0.1
WAYS = ("repeated pixels", "bicubic", "x4 as loaded", "x4 fine-tuned")
FIGURES = ("psnr", "ssim", "unchanged")


def small(picture: np.ndarray) -> np.ndarray:
    """A quarter as wide: the means of 4 x 4 pixels."""
    side = len(picture) // 4
    means = picture.reshape(side, 4, side, 4, 3).astype(np.float64).mean((1, 3))
    return means.round().astype(np.uint8)


def interpolated(picture: np.ndarray, how: Image.Resampling) -> np.ndarray:
    """Four times as wide."""
    size = (4 * picture.shape[1], 4 * picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, how))


@dataclass
class Upscaler:
    """The upscaler of the miniature's world in the host; `model` may be a fine-tuned one."""

    host: Host
    model: Any
    clip: Any
    vae: Any

    @classmethod
    def load(cls, host: Host) -> Upscaler:
        """Build the checkpoint beside the miniature's, load it, and keep its living channels."""
        file = build_x4(host.checkpoint.with_name("upscaler.safetensors"))
        loaded = host.pack.call("CheckpointLoaderSimple", file.name)
        living.install_upscaler(loaded[0], loaded[2])
        return cls(host, *loaded)

    def beside(self, picture: np.ndarray, text: str) -> tuple[Any, Any, dict]:
        """Conditionings of a small picture and a sentence, and the empty latent."""
        call = self.host.pack.call
        texts = [call("CLIPTextEncode", self.clip, said)[0] for said in (text, "")]
        return call("SD_4XUpscale_Conditioning", image_of(picture), *texts, 4.0, NOISE)

    def fine_tuned(self, photograph: np.ndarray, text: str, **inputs: Any) -> Upscaler:
        """Stage B on the photograph beside its own small picture, under the sentence."""
        pack = self.host.pack
        (latent,) = pack.call("VAEEncode", self.vae, image_of(photograph))
        positive, _, _ = self.beside(small(photograph), text)
        inputs = pack.defaults("ImagicFinetuneModel") | inputs
        model, *_ = pack.finetune(self.model, positive, latent, **inputs)
        return Upscaler(self.host, model, self.clip, self.vae)

    def draw(self, picture: np.ndarray, text: str, seed: int) -> np.ndarray:
        """The picture, four times as wide."""
        call = self.host.pack.call
        positive, negative, latent = self.beside(picture, text)
        settings = (seed, STEPS, GUIDANCE, "euler", "normal")
        (drawn,) = call("KSampler", self.model, *settings, positive, negative, latent, 1.0)
        return picture_of(*call("VAEDecode", self.vae, drawn))


def score(result: np.ndarray, edit: KnownEdit) -> dict[str, float]:
    """PSNR and SSIM to the truth, and the mean error where the edit changes nothing."""
    return {
        "psnr": metrics.psnr(result, edit.truth),
        "ssim": metrics.ssim(result, edit.truth),
        "unchanged": metrics.outside_error(result, edit.source, edit.truth),
    }


def mean(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: float(np.mean([s[name] for s in scores])) for name in FIGURES}


def enlarged(
    by: dict[str, Upscaler], picture: np.ndarray, edit: KnownEdit
) -> tuple[dict[str, dict[str, float]], list[np.ndarray]]:
    """The figures of each way to enlarge a small picture of the edit, and its pictures."""
    ways = {
        "repeated pixels": [interpolated(picture, Image.Resampling.NEAREST)],
        "bicubic": [interpolated(picture, Image.Resampling.BICUBIC)],
    }
    for name, upscaler in by.items():
        ways[name] = [upscaler.draw(picture, edit.target_text, seed) for seed in SEEDS]
    figures = {name: mean([score(p, edit) for p in made]) for name, made in ways.items()}
    return figures, [made[0] for made in ways.values()]


def run(host: Host, upscaler: Upscaler, edit: KnownEdit) -> tuple[dict, list[np.ndarray]]:
    """All figures of one edit, and a row of pictures."""
    started = time.monotonic()
    with torch.inference_mode():
        optimized, model = learn(host, edit)
        mix = mixes(host, edit, optimized)[DEFAULT_ETA]
        base = host.sample(model, mix, host.encode(edit.source), *IMAGIC, SEEDS[0])
        taught = upscaler.fine_tuned(edit.source, edit.target_text)
        by = dict(zip(WAYS[2:], (upscaler, taught), strict=True))
        from_truth, pictures = enlarged(by, small(edit.truth), edit)
        from_edit, more = enlarged(by, small(base), edit)
    found = {
        "edit": edit.name,
        "from the true result": from_truth,
        "from Imagic's edit": from_edit | {"the edit itself": score(base, edit)},
        "seconds": round(time.monotonic() - started, 1),
    }
    return found, [edit.source, edit.truth, *pictures, base, *more]


def means(found: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each source and way the mean over the edits, and how often x4 gains by fine-tuning."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for source in ("from the true result", "from Imagic's edit"):
        each = [one[source] for one in found]
        out[source] = {way: mean([one[way] for one in each]) for way in each[0]}
        loaded, taught = ([one[way]["psnr"] for one in each] for way in WAYS[2:])
        gains = [b > a for a, b in zip(loaded, taught, strict=True)]
        out[source][WAYS[3]]["nearer"] = float(np.mean(gains))
    return out


def table(found: list[dict]) -> str:
    """The README's rows."""
    lines = [
        "| enlarged to 128 px from the 32 px of | by | PSNR to the truth | SSIM | "
        "mean error where the edit changes nothing, of 255 | nearer than as loaded |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source, rows in means(found).items():
        for way, row in rows.items():
            nearer = f"{row['nearer']:.0%}".replace("%", " %") if "nearer" in row else ""
            lines.append(
                f"| {source.removeprefix('from ')} | {way} | {row['psnr']:.2f} dB | "
                f"{row['ssim']:.3f} | {row['unchanged']:.2f} | {nearer} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, write."""
    parser = command.parser(__doc__, "cascade")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--edits", type=int, default=24)
    parser.add_argument("--part", default="1/1", help="K/N: every N-th edit from the K-th")
    parser.add_argument("--merge", type=Path, nargs="*", help="instead: the JSON of parts")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    arguments = parser.parse_args()
    found, sheet = [], []
    if arguments.merge:
        found = [one for part in arguments.merge for one in json.loads(part.read_text())["edits"]]
    else:
        host = Host(command.comfyui(), only_living=True)
        upscaler = Upscaler.load(host)
        part, parts = map(int, arguments.part.split("/"))
        for edit in edits(arguments.edits)[part - 1 :: parts]:
            one, pictures = run(host, upscaler, edit)
            found.append(one)
            sheet.append(np.concatenate(pictures, axis=1))
            print(one["edit"], one["seconds"], flush=True)
            command.write(arguments.json, {"means": means(found), "edits": found})
            if arguments.sheet:
                Image.fromarray(np.concatenate(sheet)).save(arguments.sheet)
    found.sort(key=lambda one: one["edit"])
    command.write(arguments.json, {"means": means(found), "edits": found})
    print(table(found))
    if arguments.readme:
        command.into_readme("cascade", table(found))


if __name__ == "__main__":
    main()
