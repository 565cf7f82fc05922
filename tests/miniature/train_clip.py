"""Train the miniature's CLIP, from pictures and sentences of the world alone.

    python tests/miniature/train_clip.py --work DIR [--minutes N]

Goes on from what it finds in DIR, and writes the weights into asset/. Needs no ComfyUI.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniature import clip, clip_layout, world  # noqa: E402
from miniature.train import CHUNK, HERE, SEED, Fitting, Run, example, rendered  # noqa: E402

CONFIG: dict[str, Any] = {
    "pictures": 6144,
    "clip": {
        "minutes": 25.0,
        "batch": 64,
        "lr": 2e-3,
        "lr_rest": 2e-3,
        "ema": 0.99,
        "report": 50,
        "patches": 0.5,
        "all_patches_from": 0.8,
    },
}
OUTSIDE = ("vision_model.embeddings", "text_model.embeddings", "logit_scale")


def pictures(run: Run) -> np.ndarray:
    """Pictures of the training split, kept in files; uint8 [N, 128, 128, 3]."""
    for start in range(0, run.config["pictures"], CHUNK):
        path = run.work / f"train_{start // CHUNK:03d}.npy"
        if not path.exists():
            with path.with_suffix(".part").open("wb") as file:
                np.save(file, rendered("train", start, start + CHUNK))
            path.with_suffix(".part").replace(path)
    return np.concatenate([np.load(p) for p in sorted(run.work.glob("train_*.npy"))])


def on_screen(picture: np.ndarray, who: world.Identity, what: world.Attributes) -> np.ndarray:
    """The dog over a green screen."""
    dog = (picture != world.landscape(who, what.place)).any(-1, keepdims=True)
    return np.where(dog, picture, np.array(clip.SCREEN_COLOUR, np.uint8))


def told(shown: clip.Said, rng: np.random.Generator) -> clip.Said:
    """What one sentence says of a picture: not all of it."""
    return clip.Said(
        shown.pose if rng.random() < 0.8 else None,
        shown.place if rng.random() < 0.75 else None,
        shown.accessory,
        shown.colour if rng.random() < 0.5 else None,
        True if shown.striped and rng.random() < 0.7 else None,
    )


def soften(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, noise and a cut at the edges: what an autoencoder and an edit leave, and a crop."""
    if rng.random() < 0.5:
        size = int(rng.integers(48, 100))
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = F.interpolate(x, (128, 128), mode="bicubic")
    if rng.random() < 0.5:
        side = int(rng.integers(104, 128))
        top, left = rng.integers(0, 129 - side, 2)
        x = x[..., top : top + side, left : left + side]
    return (x + float(rng.uniform(0, 0.05)) * torch.randn_like(x)).clamp(0, 1)


def loss(
    model: clip.Clip, data: np.ndarray, step: int, kept: torch.Tensor | None, batch: int
) -> torch.Tensor:
    """The contrastive loss of one batch; every sentence that is true of a picture is its own."""
    rng = np.random.default_rng([SEED, 4, step])
    shown, seen, said = [], [], []
    for i in rng.integers(len(data), size=batch):
        who, what = example("train", int(i))
        picture = data[i]
        if rng.random() < 0.3:
            who = replace(who, marking=world.STRIPES)
            picture = world.render(who, what)
        true = clip.truth(who, what)
        if rng.random() < 0.08:
            picture, true = on_screen(picture, who, what), true._replace(place=clip.SCREEN)
        shown.append(picture)
        seen.append(true)
        said.append(told(true, rng))
    torch.manual_seed(SEED + step)
    x = soften(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255, rng)
    texts = model.read([clip.sentence(s, rng) for s in said])
    logits = model.see(x, kept) @ texts.T * model.logit_scale.clamp(max=4.6).exp()
    match = torch.tensor([[clip.fits(s, t) for s in said] for t in seen]).float()
    rows, columns = (
        -(m / m.sum(1, keepdim=True) * F.log_softmax(z, 1)).sum(1).mean()
        for m, z in ((match, logits), (match.T, logits.T))
    )
    return (rows + columns) / 2


@torch.no_grad()
def retrieval(model: clip.Clip, count: int = 256, split: str = "heldout") -> dict[str, float]:
    """How often, of the sentences of all scenes, the nearest to a picture is its own.

    Chance is 1 in 48 for the scene, 1 in 6 for the colour, 1 in 2 for the stripes, which every
    second dog is given.
    """
    shown = [example(split, i) for i in range(count)]
    shown[1::2] = [(replace(who, marking=world.STRIPES), what) for who, what in shown[1::2]]
    x = torch.from_numpy(np.stack([world.render(*s) for s in shown])).permute(0, 3, 1, 2) / 255
    seen = torch.cat([model.see(part) for part in x.float().split(32)])
    scenes = [
        world.Attributes(p, q, a)
        for p in world.POSES for q in world.PLACES for a in world.ACCESSORIES
    ]  # fmt: skip

    def nearest(said: list[clip.Said]) -> list[int]:
        return (seen @ model.read([clip.sentence(s) for s in said]).T).argmax(1).tolist()

    found = [scenes[i] for i in nearest([clip.Said(*s, None, None) for s in scenes])]
    right = {
        name: float(np.mean([getattr(f, name) == getattr(s, name) for f, (_, s) in
                             zip(found, shown, strict=True)]))
        for name in world.Attributes._fields
    }  # fmt: skip
    right["scene"] = float(np.mean([f == s for f, (_, s) in zip(found, shown, strict=True)]))
    plain = clip.Said(None, None, "none", None, None)
    coats = nearest([plain._replace(colour=colour) for colour in clip.COLOURS])
    truths = [clip.truth(*s) for s in shown]
    right["colour"] = float(
        np.mean([clip.COLOURS[i] == t.colour for i, t in zip(coats, truths, strict=True)])
    )
    stripes = nearest([plain, plain._replace(striped=True)])
    right["stripes"] = float(
        np.mean([i == t.striped for i, t in zip(stripes, truths, strict=True)])
    )
    return {name: round(value, 4) for name, value in right.items()}


def train(run: Run) -> clip.Clip:
    """Train, or go on; clip.pt holds all of it. Returns the average of the weights."""
    torch.manual_seed(SEED)
    model = clip.Clip()
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    fitting = Fitting(run, "clip", model, OUTSIDE, average)
    setting, data = fitting.setting, pictures(run)
    patches = (clip.PICTURE // clip.PATCH) ** 2
    recent: list[float] = []
    while fitting.progress < 1:
        kept = None
        if fitting.progress < setting["all_patches_from"]:
            generator = torch.Generator().manual_seed(SEED + fitting.clock.step)
            kept = torch.randperm(patches, generator=generator)[: int(setting["patches"] * patches)]
        value = loss(model, data, fitting.clock.step, kept, setting["batch"])
        fitting.step(value)
        recent.append(value.item())
        if fitting.due():
            own = {n: p.detach().clone() for n, p in model.named_parameters()}
            model.load_state_dict(fitting.average)
            right = retrieval(model, 96, "tuning")
            model.load_state_dict(own)
            run.log("clip", **fitting.figures(), loss=round(float(np.mean(recent)), 4), **right)
            recent.clear()
            fitting.save()
    model.load_state_dict(fitting.average)
    return model


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=CONFIG["clip"]["minutes"])
    arguments = parser.parse_args()
    config = json.loads(json.dumps(CONFIG))
    config["clip"]["minutes"] = arguments.minutes
    run = Run(arguments.work, "cpu", config)
    model = train(run)
    save_file({n: t.half().contiguous() for n, t in model.state_dict().items()}, clip_layout.FILE)
    run.log("clip, held out", **retrieval(model))
    record = HERE / "run"
    (record / "clip.jsonl").write_text((run.work / "log.jsonl").read_text())


if __name__ == "__main__":
    main()
