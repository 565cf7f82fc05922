"""Does the miniature draw what the sentence says, and is it more than a memory?

    python tests/benchmarks/samples.py [--json OUT.json] [--sheet OUT.png] [--count N]
                     [--training N] [--living]

Draws through the real host's KSampler and has the reader look. Then looks for each sample's
nearest picture, once among those of the training and once among as many of the same kind that the
model has never seen: samples of a model that copies find theirs among the former, of one that does
not in either just as often and as near. The same for renders that it has never seen, "new" ones of
the training split's colours and held-out ones, which have colours of their own.
"""

import itertools
import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import numpy as np
import torch
from miniature import metrics, reader, train, world
from miniature.captions import caption
from PIL import Image

from benchmarks import command
from benchmarks.counterfactual import Host

STEPS, GUIDANCE, BATCH = 25, 3.0, 16
KINDS = ("pose", "place", "accessory")


def draw(host: Host, wanted: world.Attributes, seed: int, count: int) -> list[np.ndarray]:
    """`count` pictures of one sentence."""
    nothing = {"samples": torch.zeros(count, 4, 16, 16)}
    (out,) = host.pack.call(
        "KSampler",
        host.model,
        seed,
        STEPS,
        GUIDANCE,
        "ddim",
        "normal",
        host.say(caption(wanted)),
        host.empty,
        nothing,
    )
    return [host.decode({"samples": z[None]}) for z in out["samples"]]


def nearest(pictures: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distance of each picture to the nearest known one, root mean square of 255, at 32 x 32."""
    a, b = (
        p.reshape(-1, 32, 4, 32, 4, 3).mean((2, 4)).reshape(len(p), -1) for p in (pictures, known)
    )
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares.min(1), 0) / a.shape[1])


def compare(shown: np.ndarray, trained: np.ndarray, unseen: np.ndarray) -> dict[str, object]:
    """Minimum, 5th percentile and median to the nearest of both, and how often the first is."""
    to_trained, to_unseen = nearest(shown, trained), nearest(shown, unseen)
    return {
        "training": np.percentile(to_trained, (0, 5, 50)).tolist(),
        "unseen": np.percentile(to_unseen, (0, 5, 50)).tolist(),
        "nearer_to_training": float((to_trained < to_unseen).mean()),
    }


def main() -> None:
    """Run, print, write."""
    parser = command.parser(__doc__, "samples")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument(
        "--training", type=int, default=8192, help="training pictures to look for copies in"
    )
    parser.add_argument(
        "--living", action="store_true", help="the living channels alone: eight times as fast"
    )
    arguments = parser.parse_args()
    host = Host(command.comfyui(), only_living=arguments.living)

    cells = [
        world.Attributes(*c)
        for c in itertools.product(world.POSES, world.PLACES, world.ACCESSORIES)
    ]
    np.random.default_rng(0).shuffle(cells)
    asked: list[world.Attributes] = []
    drawn: list[np.ndarray] = []
    share = max(1, -(-arguments.count // len(cells)))
    for n, wanted in enumerate(cells):
        count = min(share, arguments.count - len(drawn))
        for start in range(0, count, BATCH):
            part = draw(host, wanted, 1000 * n + start, min(BATCH, count - start))
            drawn += part
            asked += [wanted] * len(part)
    pictures = np.stack(drawn)
    found = reader.read(reader.load(), pictures)
    right = {
        kind: float(
            np.mean(
                [getattr(f, kind) == getattr(a, kind) for f, a in zip(found, asked, strict=True)]
            )
        )
        for kind in KINDS
    }

    def through(shown: np.ndarray) -> np.ndarray:
        return np.stack([host.decode(host.encode(p)) for p in shown])

    held_out = train.rendered("heldout", 0, len(pictures))
    coded = through(held_out)
    # no training run has rendered this far
    fresh = train.rendered("train", 100_000, 100_000 + len(pictures) + arguments.training)
    new, unseen = through(fresh[: len(pictures)]), fresh[len(pictures) :]
    trained = train.rendered("train", 0, arguments.training)
    figures = {
        "samples": len(pictures),
        "right": right,
        "autoencoder_psnr": float(
            np.mean([metrics.psnr(a, b) for a, b in zip(coded, held_out, strict=True)])
        ),
        "nearest": {
            name: compare(shown, trained, unseen)
            for name, shown in (("samples", pictures), ("new", new), ("held out", coded))
        },
    }
    command.write(arguments.json, figures)
    print(json.dumps(figures, indent=1))
    if arguments.sheet:
        side = 8
        shown = pictures[: len(pictures) // side * side][: side * 12]
        rows = [np.concatenate(shown[i : i + side], axis=1) for i in range(0, len(shown), side)]
        Image.fromarray(np.concatenate(rows)).save(arguments.sheet)


if __name__ == "__main__":
    main()
