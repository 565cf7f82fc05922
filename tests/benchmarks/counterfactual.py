"""Edits whose true result is known: Imagic against its baselines in the real host.

    python tests/benchmarks/counterfactual.py [--json OUT.json] [--sheet OUT.png] [--edits N]
                     [--part K/N | --merge PARTS] [--methods NAME ...] [--living]
                     [--checkpoint FILE] [--world FILE.py] [--readme]

Imagic's eta and SDEdit's strength follow one rule for all pictures. SDEdit takes the lowest on the
grid at which the judge sees the asked attribute, which of all such rules served it best on the
tuning split; Imagic takes the next one, since the first shows the edit half done. Where the judge
never sees it, each takes its default. The truth is looked at only to score the result. What is
drawn hangs on the seed, so each edit is drawn with every one of SEEDS. The first table is the mean
over all of them: what one run gives. The second is what a user gets who draws them all and takes
one: of those that reach the edit the one most like the photograph, by SSIM.

A world is a Python file with `edits(count)` and `Judge`, as in tests/miniature/edits.py; a
checkpoint other than the miniature needs its own world, and text2live, which is drawn once for all
seeds, none but the miniature's: its words are those that the miniature's CLIP knows.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import numpy as np
import torch
from machine import imagic, in_process
from miniature import build, clip, clip_layout, metrics
from PIL import Image

from benchmarks import command, edit_tables, living

STEPS, SCHEDULER, SEEDS = 50, "normal", (11, 12, 13, 14)
ETAS, DEFAULT_ETA = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.9
# From the photograph's own noise some edits come later.
OWN_ETAS, OWN_DEFAULT_ETA = (*ETAS, 1.2), 1.2
STRENGTHS, DEFAULT_STRENGTH = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.7
# Sampler and guidance that served each method best on the tuning split.
IMAGIC, INVERTED, SDEDIT = ("euler_ancestral", 2.0), ("euler", 2.0), ("ddim", 3.0)
DDIB_GUIDANCE = 2.0
TEXT2LIVE = {"steps": 100, "views": 2, "seed": SEEDS[0]}
# The paper's is for a network about eight times as wide as the miniature's living channels; what a
# step of Adam adds up to grows with the width.
PAPER_RATE = 8 * 5e-7


def image_of(picture: np.ndarray) -> torch.Tensor:
    """A uint8 picture [H, W, 3] as the host's IMAGE."""
    return torch.from_numpy(picture.astype(np.float32) / 255)[None]


def picture_of(image: torch.Tensor) -> np.ndarray:
    """The first picture of an IMAGE, uint8 [H, W, 3]."""
    return (image[0].clamp(0, 1) * 255).round().byte().cpu().numpy()


class Host:
    """A real ComfyUI in this process with the pack and a checkpoint."""

    def __init__(
        self, comfyui: Path, checkpoint: Path | None = None, only_living: bool = False
    ) -> None:
        """Start ComfyUI and load the checkpoint, the miniature where none is named."""
        self.pack = imagic.start(comfyui)
        import folder_paths

        self.checkpoint = checkpoint or build.build(
            Path(folder_paths.base_path) / "models" / "miniature.safetensors"
        )
        folder_paths.add_model_folder_path("checkpoints", str(self.checkpoint.parent))
        self.model, self.clip, self.vae = self.pack.call(
            "CheckpointLoaderSimple", self.checkpoint.name
        )
        if only_living:
            living.install(self.model, self.checkpoint)
        self.empty = self.say("")
        self.learned: tuple[Any, ...] = ()

    @cached_property
    def eyes(self) -> tuple[Any, Any]:
        """CLIP_VISION and CLIP that know the miniature's world."""
        return clip_layout.in_host()

    def say(self, text: str) -> Any:
        """CONDITIONING of a sentence."""
        return self.pack.call("CLIPTextEncode", self.clip, text)[0]

    def encode(self, picture: np.ndarray) -> dict:
        """LATENT of a uint8 picture."""
        return self.pack.call("VAEEncode", self.vae, image_of(picture))[0]

    def decode(self, latent: dict) -> np.ndarray:
        """The uint8 picture of a LATENT."""
        return picture_of(self.pack.call("VAEDecode", self.vae, latent)[0])

    def sample(
        self,
        model: Any,
        positive: Any,
        latent: dict,
        sampler: str,
        cfg: float,
        seed: int,
        denoise: float = 1.0,
        steps: int = STEPS,
    ) -> np.ndarray:
        """KSampler with the benchmark's fixed schedule, decoded."""
        return self.decode(
            self.pack.call(
                "KSampler",
                model,
                seed,
                steps,
                cfg,
                sampler,
                SCHEDULER,
                positive,
                self.empty,
                latent,
                denoise,
            )[0]
        )

    def flow(
        self,
        model: Any,
        positive: Any,
        latent: dict,
        cfg: float,
        sampler: str,
        backwards: bool = False,
    ) -> dict:
        """The probability flow from noise to picture, or backwards."""
        import comfy.samplers

        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)
        if backwards:
            sigmas = sigmas.flip(0)
            sigmas[0] = 1e-4  # samplers divide by sigma
        x = latent["samples"]
        out = comfy.samplers.sample(
            model,
            torch.zeros_like(x),
            positive,
            self.empty,
            cfg,
            model.load_device,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            {},
            latent_image=x,
            disable_pbar=True,
        )
        return {"samples": out.cpu()}


Grid = dict[float, np.ndarray]
Drawn = dict[int, Grid]
"""For each seed, the pictures of all settings."""


def learn(host: Host, edit: Any, recipe: str = "as set") -> tuple[Any, Any]:
    """Stages A and B by a recipe of the nodes; the paper's, but for B's rate.

    Returns e_opt and the model. The last ones are kept, for methods that only draw in another way.
    """
    key, pack, given = (edit.name, recipe), host.pack, {"recipe": recipe}
    if host.learned[:1] == (key,):
        return host.learned[1:]
    image, target = host.encode(edit.source), host.say(edit.target_text)
    inputs = pack.defaults("ImagicOptimizeEmbedding") | given
    optimized, _ = pack.optimize(host.model, target, image, **inputs)
    wires = host.model, optimized, image
    if recipe == "paper":
        stage = pack.core.finetune
        settings = dataclasses.replace(stage.PAPER, learning_rate=PAPER_RATE)
        model, _ = pack.finetune_by(settings, stage.PAPER_METHOD, wires)
    else:
        model, *_ = pack.finetune(*wires, **pack.defaults("ImagicFinetuneModel") | given)
    host.learned = key, optimized, model
    return optimized, model


def mixes(
    host: Host, edit: Any, optimized: Any, etas: tuple[float, ...] = ETAS
) -> dict[float, Any]:
    """Stage C: the conditioning of each eta."""
    target = host.say(edit.target_text)
    return {eta: host.pack.interpolate(target, optimized, eta)[0] for eta in etas}


def over_eta(
    host: Host, model: Any, mixed: dict[float, Any], image: dict, how: tuple[str, float]
) -> Drawn:
    """KSampler at each eta from each seed, by a sampler and its guidance."""
    return {
        seed: {eta: host.sample(model, e, image, *how, seed) for eta, e in mixed.items()}
        for seed in SEEDS
    }


def imagic_seeded(host: Host, edit: Any, recipe: str = "as set") -> Drawn:
    """All stages, and KSampler from the seed's noise."""
    optimized, model = learn(host, edit, recipe)
    return over_eta(host, model, mixes(host, edit, optimized), host.encode(edit.source), IMAGIC)


def imagic_inverted(host: Host, edit: Any) -> Drawn:
    """All stages, and KSampler from the seed's noise mixed with the photograph's own."""
    optimized, tuned = learn(host, edit)
    image = host.encode(edit.source)
    inputs = host.pack.defaults("ImagicPhotographNoise")
    (model,) = host.pack.call(
        "ImagicPhotographNoise", tuned, host.model, optimized, image, **inputs
    )
    return over_eta(host, model, mixes(host, edit, optimized, OWN_ETAS), image, INVERTED)


def sdedit(host: Host, edit: Any) -> Drawn:
    """Noise the picture to a strength and draw the sentence from there."""
    image, target = host.encode(edit.source), host.say(edit.target_text)
    return {
        seed: {
            s: host.sample(host.model, target, image, *SDEDIT, seed, denoise=s) for s in STRENGTHS
        }
        for seed in SEEDS
    }


def seedless(grid: Grid) -> Drawn:
    """What has no chance in it, the same for every seed."""
    return dict.fromkeys(SEEDS, grid)


def ddib(host: Host, edit: Any) -> Drawn:
    """To noise under the picture's own sentence, and back under the asked one."""
    noise = host.flow(
        host.model,
        host.say(edit.source_text),
        host.encode(edit.source),
        1.0,
        "euler",
        backwards=True,
    )
    back = host.flow(host.model, host.say(edit.target_text), noise, DDIB_GUIDANCE, "euler")
    return seedless({0.0: host.decode(back)})


def text2live(host: Host, edit: Any) -> Drawn:
    """A layer painted over the picture."""
    wanted = {edit.kind: getattr(edit.wanted, edit.kind)}
    layer = clip.sentence(clip.NOTHING._replace(**wanted))
    said = edit.target_text, edit.source_text, layer
    image, *_ = host.pack.call(
        "ImagicText2Live", image_of(edit.source), *host.eyes, *said, **TEXT2LIVE
    )
    return seedless({0.0: picture_of(image)})


class Method(NamedTuple):
    """How to edit, which of the settings that reach the edit to take, and which if none does."""

    make: Callable[[Host, Any], Drawn]
    default: float = 0.0
    take: int = 0


METHODS = {
    "nothing done": Method(lambda host, edit: seedless({0.0: edit.source})),
    "ceiling": Method(lambda host, edit: seedless({0.0: host.decode(host.encode(edit.truth))})),
    "imagic": Method(imagic_seeded, DEFAULT_ETA, take=1),
    "imagic, inverted": Method(imagic_inverted, OWN_DEFAULT_ETA, take=1),
    "imagic, fast": Method(partial(imagic_seeded, recipe="fast"), DEFAULT_ETA, take=1),
    "imagic, paper": Method(partial(imagic_seeded, recipe="paper"), DEFAULT_ETA, take=1),
    "sdedit": Method(sdedit, DEFAULT_STRENGTH),
    "ddib": Method(ddib),
    "text2live": Method(text2live),
}


def choose(method: Method, reached: dict[float, bool]) -> float:
    """The one rule, from which settings of the grid reach the edit."""
    good = [setting for setting in sorted(reached) if reached[setting]]
    return good[min(method.take, len(good) - 1)] if good else method.default


def run(host: Host, edit: Any, method: str, judge: Any) -> tuple[list[dict], list[np.ndarray]]:
    """One edit by one method: its figures for each seed, and the first's pictures for the sheet."""
    started = time.monotonic()
    with torch.inference_mode():
        drawn = METHODS[method].make(host, edit)
    seconds = round(time.monotonic() - started, 1)
    # the same grid for every seed, where there is no chance in it
    grids = {id(grid): grid for grid in drawn.values()}
    scores = {key: score(host, edit, method, judge, grid) for key, grid in grids.items()}
    each = [
        {**scores[id(grid)][0], "seed": seed, "seconds": seconds} for seed, grid in drawn.items()
    ]
    return each, next(iter(scores.values()))[1]


def score(
    host: Host, edit: Any, method: str, judge: Any, grid: Grid
) -> tuple[dict, list[np.ndarray]]:
    """The figures of one grid, and its pictures."""
    verdicts = {s: judge(edit, picture) for s, picture in grid.items()}
    setting = choose(METHODS[method], {s: v.reached for s, v in verdicts.items()})
    found = {
        "edit": edit.name,
        "setting": setting,
        "reached": verdicts[setting].reached,
        "kept": verdicts[setting].kept,
        "seen": verdicts[setting].seen,
        "psnr": metrics.psnr(grid[setting], edit.truth),
        "ssim": metrics.ssim(grid[setting], edit.truth),
        "likeness": metrics.ssim(grid[setting], edit.source),
        "grid": {
            s: [v.reached, v.kept, round(metrics.psnr(grid[s], edit.truth), 2)]
            for s, v in verdicts.items()
        },
    }
    if not method.startswith("imagic"):
        return found, [grid[setting]]
    found["reconstruction"] = metrics.psnr(grid[0.0], edit.source)
    found["autoencoder"] = metrics.psnr(host.decode(host.encode(edit.source)), edit.source)
    return found, [grid[0.0], grid[setting]]


def main() -> None:
    """Run, print, write."""
    parser = command.parser(__doc__, "counterfactual")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--edits", type=int, default=36)
    parser.add_argument("--part", default="1/1", help="K/N: every N-th edit from the K-th")
    parser.add_argument(
        "--merge", type=Path, nargs="*", help="instead: put the JSON of parts together"
    )
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--living",
        action="store_true",
        help="the miniature's living channels alone: eight times as fast",
    )
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--world", type=Path, default=TESTS / "miniature" / "edits.py")
    arguments = parser.parse_args()
    if arguments.merge:
        merged, network = edit_tables.merge(arguments.merge)
        edit_tables.write(arguments.json, merged, network)
        edit_tables.show(merged, into_readme=arguments.readme)
        return
    if arguments.living and arguments.checkpoint:
        parser.error("--living knows the miniature's own checkpoint only")
    world = in_process.import_file("benchmark_world", arguments.world)
    host, judge = Host(command.comfyui(), arguments.checkpoint, arguments.living), world.Judge()
    network = f"{host.checkpoint.name}{', living channels' if arguments.living else ''}"

    results: dict[str, list[dict]] = {name: [] for name in arguments.methods}
    sheet = []
    part, parts = map(int, arguments.part.split("/"))
    for edit in world.edits(arguments.edits)[part - 1 :: parts]:
        shown = [edit.source, edit.truth]
        for name in arguments.methods:
            found, pictures = run(host, edit, name, judge)
            results[name] += found
            shown += pictures
            print(name, json.dumps(found), flush=True)
        sheet.append(np.concatenate(shown, axis=1))
        # after every edit, so that a run cut short is not lost
        edit_tables.write(arguments.json, results, network)
        if arguments.sheet:
            Image.fromarray(np.concatenate(sheet)).save(arguments.sheet)
    edit_tables.show(results, into_readme=arguments.readme)
    print(f"each edit's figures: {arguments.json.absolute()}")


if __name__ == "__main__":
    main()
