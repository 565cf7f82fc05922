"""Whether one learning rate of stage B serves networks of any width, any rank, any method.

    python tests/benchmarks/transfer.py --work DIR [--json OUT.json] [--edits N] [--readme]

Three networks draw the miniature's world: its own; one of half its living channels, trained first
from nothing; one of twice as many, trained first from the miniature and new channels that nothing
reads yet. Both are kept in DIR. Each learns edits of the
tuning split at rates on a grid of factors of 2 around the default, by the steps of the pack (a
share of the layer) and by Adam (raw numbers). For every rate: PSNR at eta 0, to the photograph;
PSNR to the true result at the eta that served it best; and what is left of the sentence, the
distance between the predictions for e_tgt and for e_opt in the model that was fine-tuned, as a
share of the one in the model as loaded. A rate is best at the vertex of a parabola through its
PSNR to the truth and those of both neighbours. What was measured is not measured again.
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import numpy as np
import torch
from miniature import asset, build, edits, layout, metrics, train

from benchmarks import command, counterfactual, living

WIDTHS = {
    "half": layout.Shape(40, 80, 120, 120),
    "once": layout.Shape(),
    "twice": layout.Shape(160, 240, 480, 480),
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
ETAS, SEEDS, SAMPLING_STEPS = (0.8, 0.9, 1.0), (11, 12), 25
PICTURES, TRAINING_STEPS = 4096, {"half": 3000, "twice": 500}
# What served the miniature best before steps were measured in the size of the layer.
ADAM = 1e-3


class Way(NamedTuple):
    """How stage B moves: its method, the rank of ``lora``, by the pack's steps or by Adam."""

    method: str
    rank: int
    relative: bool = True

    def __str__(self) -> str:
        """For the table."""
        rank = f", rank {self.rank}" if self.method == "lora" else ""
        return f"{self.method}{rank}{'' if self.relative else ', Adam'}"


WAYS = (
    Way("lora", 16),
    Way("full", 0),
    Way("lora", 16, relative=False),
    Way("lora", 4),
    Way("lora", 64),
    Way("lora", 4, relative=False),
    Way("lora", 64, relative=False),
)


def network(work: Path, name: str) -> Path:
    """The folder of a network's weights, as ``asset`` writes them; trained where it is missing."""
    if WIDTHS[name] == layout.Shape():
        return asset.FOLDER
    folder = work / name
    if (folder / "asset.json").exists():
        return folder
    about, _, autoencoder = asset.read()
    config = json.loads(json.dumps(train.CONFIG))
    config["pictures"] = PICTURES
    config["unet"] |= {"shape": vars(WIDTHS[name]), "steps": TRAINING_STEPS[name]}
    if name == "twice":
        config["init"] = str(build.build(work / "miniature.safetensors"))
    run = train.Run(work / f"{name}.part", "cpu", config)
    # All that is drawn is the same for both networks.
    shared = train.Run(work, "cpu", config)
    train.render(shared)
    if not (work / "ae.pt").exists():
        state = {n: torch.from_numpy(t) for n, t in autoencoder.items()}
        train.save(work / "ae.pt", {"model": state, "latent_std": about["latent_std"]})
    train.encode_latents(shared)
    for file in work.glob("latents_*.npy"):
        link = run.work / file.name
        if not link.exists():
            link.hardlink_to(file)
    train.train_unet(run)
    trained = torch.load(run.work / "unet.pt", map_location="cpu")
    unet = {n: t.numpy() for n, t in trained["average"].items()}
    asset.write(WIDTHS[name], unet, autoencoder, about["latent_std"], folder)
    return folder


def left_of_the_sentence(host: Any, tuned: Any, ends: tuple[Any, Any], image: dict) -> float:
    """How far apart the predictions at both ``ends`` still are, as a share of what they were."""
    apart, found = host.pack.core.left.apart, []
    one, other = (host.pack.host.read_sentence("text", end).embedding for end in ends)
    for model in (host.model, tuned):
        with torch.inference_mode(), host.pack.session(model, ends[0], image) as s:
            found.append(apart(s.denoiser, s.photographs, one, other, seed=0, at_once=4))
    return float(found[1] / found[0])


def measure(host: Any, edit: Any, optimized: Any, way: Way, rate: float, judge: Any) -> dict:
    """One training, and what it drew."""
    pack, image, target = host.pack, host.encode(edit.source), host.say(edit.target_text)
    settings = pack.core.finetune.METHODS[way.method]
    settings = replace(settings, learning_rate=rate, relative=way.relative)
    losses: list[float] = []
    found: dict[str, Any] = {"edit": edit.name, "rate": rate}
    try:
        tuned, _ = pack.finetune_by(
            settings, way.method, (host.model, optimized, image), rank=way.rank, losses=losses
        )
    except FloatingPointError:
        return found | {"psnr": 0.0, "reconstruction": 0.0, "kept": False, "left": 0.0}
    drawn: dict[float, list[float]] = {}
    kept = []
    for eta in (0.0, *ETAS):
        mixed = pack.interpolate(target, optimized, eta)[0]
        for seed in SEEDS[:1] if eta == 0 else SEEDS:
            how = (*counterfactual.IMAGIC, seed)
            picture = host.sample(tuned, mixed, image, *how, steps=SAMPLING_STEPS)
            drawn.setdefault(eta, []).append(
                metrics.psnr(picture, edit.source if eta == 0 else edit.truth)
            )
            verdict = judge(edit, picture)
            kept.append(eta > 0 and verdict.reached and verdict.kept)
    return found | {
        "reconstruction": drawn[0.0][0],
        "psnr": max(float(np.mean(drawn[eta])) for eta in ETAS),
        "kept": any(kept),
        "left": left_of_the_sentence(host, tuned, (target, optimized), image),
        "loss": float(np.mean(losses[-10:])),
    }


def vertex(rates: list[float], values: list[float]) -> float:
    """The rate at which a parabola over its logarithm is highest, near the best that was tried."""
    at = int(np.argmax(values))
    if at in (0, len(values) - 1):
        return rates[at]
    below, here, above = values[at - 1 : at + 2]
    shift = 0.5 * (below - above) / (below - 2 * here + above)
    return float(rates[at] * 2**shift)


def summary(cells: list[dict]) -> list[dict]:
    """A row for each network and way: over its rates, the means of the edits that have all."""
    rows = []
    for width in WIDTHS:
        for way in map(str, WAYS):
            mine = [c for c in cells if (c["network"], c["way"]) == (width, way)]
            tried = Counter(c["edit"] for c in mine)
            mine = [c for c in mine if tried[c["edit"]] == len(FACTORS)]
            rates = sorted({c["rate"] for c in mine})
            if not mine:
                continue
            means = {
                figure: [float(np.mean([c[figure] for c in mine if c["rate"] == r])) for r in rates]
                for figure in ("psnr", "reconstruction", "kept", "left")
            }
            best = vertex(rates, means["psnr"])
            rows.append({"network": width, "way": way, "rates": rates, "best": best, **means})
    return rows


def show(rows: list[dict]) -> None:
    """Print a line for each network and way: its best rate, and every figure over the factors."""
    for row in rows:
        default = row["rates"][len(FACTORS) // 2]
        print(f"{row['network']:6} {row['way']:20} best at {row['best'] / default:.2f} x {default}")
        for figure in ("psnr", "reconstruction", "kept", "left"):
            print(f"    {figure:15}", *(f"{value:7.2f}" for value in row[figure]))


def for_readme(rows: list[dict]) -> str:
    """The README's table: a line for each network and way."""
    factors = ", ".join(f"{factor:g}" for factor in FACTORS)
    lines = [
        "| network | stage B | best rate | PSNR to the truth at "
        f"{factors} of the default | at eta 0 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        best = row["best"] / row["rates"][len(FACTORS) // 2]
        truth, again = (
            ", ".join(f"{value:.1f}" for value in row[figure])
            for figure in ("psnr", "reconstruction")
        )
        lines.append(f"| {row['network']} | {row['way']} | {best:.2f} | {truth} | {again} |")
    return "\n".join(lines) + "\n"


def cells(known: list[dict], work: Path, count: int) -> Iterator[dict]:
    """What is not known yet, one training after the other; the first ways of all networks first."""
    host, judge = counterfactual.Host(command.comfyui()), edits.Judge()
    done = {(c["network"], c["way"], c["edit"], c["rate"]) for c in known}
    learned: dict[tuple[str, str], Any] = {}
    folders = {name: network(work, name) for name in WIDTHS}
    for name, folder in folders.items():
        build.expand(work / f"{name}.safetensors", folder)
    for way, name in itertools.product(WAYS, WIDTHS):
        living.install(host.model, work / f"{name}.safetensors", folders[name])
        default = host.pack.core.finetune.METHODS[way.method].learning_rate
        rates = [factor * (default if way.relative else ADAM) for factor in FACTORS]
        for edit in edits.edits(2 * count, "tuning")[::2]:
            todo = [r for r in rates if (name, str(way), edit.name, r) not in done]
            if todo and (name, edit.name) not in learned:
                image, target = host.encode(edit.source), host.say(edit.target_text)
                defaults = host.pack.defaults("ImagicOptimizeEmbedding")
                found = host.pack.optimize(host.model, target, image, **defaults)
                learned[name, edit.name] = found[0]
            for rate in todo:
                cell = measure(host, edit, learned[name, edit.name], way, rate, judge)
                yield {"network": name, "way": str(way), **cell}


def main() -> None:
    """Train what is missing, measure, print, write."""
    parser = command.parser(__doc__, "transfer")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=2)
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    measured = json.loads(given.json.read_text())["cells"] if given.json.exists() else []
    for cell in cells(measured, given.work, given.edits):
        print(json.dumps(cell), flush=True)
        measured.append(cell)
        command.write(given.json, {"rows": summary(measured), "cells": measured})
    show(summary(measured))
    if given.readme:
        command.into_readme("transfer", for_readme(summary(measured)))


if __name__ == "__main__":
    main()
