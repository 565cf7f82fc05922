"""Reads attributes and identity back from pictures; trained on renders.

A picture whose dog is none of the poses (two heads, a smear, no dog) has a class of its own, so
that a blob is not called sitting.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from miniature import world
from miniature.asset import FOLDER
from miniature.world import Attributes, Identity

FILE = FOLDER / "reader.safetensors"
NO_DOG = "none of these"
CLASSES: dict[str, tuple] = {
    "pose": (*world.POSES, NO_DOG),
    "place": world.PLACES,
    "accessory": world.ACCESSORIES,
    "ears": world.EARS,
    "tail": world.TAILS,
    "marking": world.MARKINGS,
    "facing": (-1, 1),
}
# Name -> (middle, half range): what the network predicts is scaled to about [-1, 1].
LENGTHS = {"leg": (18.0, 3.0), "build": (10.5, 1.5), "x": (64.0, 6.0), "scale": (1.035, 0.085)}
WIDTHS = (16, 32, 64, 96)


class Reader(nn.Module):
    """A small convolutional network with one head for each property."""

    def __init__(self) -> None:
        """Weights from torch's global generator."""
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv2d(n_in, n_out, 3, stride=2, padding=1),
                nn.GroupNorm(8, n_out),
                nn.ReLU(),
            ]
        layers += [
            nn.Conv2d(WIDTHS[-1], 48, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * 64, 160),
            nn.ReLU(),
        ]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({n: nn.Linear(160, len(c)) for n, c in CLASSES.items()})
        self.heads["hue"] = nn.Linear(160, 2)
        self.heads["lengths"] = nn.Linear(160, len(LENGTHS))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, 3, 128, 128] in [0, 1] to logits, hue as (cos, sin) and scaled lengths."""
        h = self.body(x * 2 - 1)
        return {name: head(h) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Reading:
    """What was read from one picture."""

    pose: str
    place: str
    accessory: str
    ears: str
    tail: str
    marking: str
    facing: int
    hue: float
    leg: float
    build: float
    x: float
    scale: float


def read(model: Reader, pictures: np.ndarray) -> list[Reading]:
    """Readings of uint8 pictures [B, 128, 128, 3]."""
    readings = []
    for part in np.array_split(pictures, max(1, len(pictures) // 64)):
        with torch.no_grad():
            out = model(torch.tensor(part).permute(0, 3, 1, 2).float() / 255)
        for n in range(len(part)):
            found = {name: c[int(out[name][n].argmax())] for name, c in CLASSES.items()}
            cos, sin = out["hue"][n].tolist()
            lengths = {
                name: middle + half * out["lengths"][n, i].item()
                for i, (name, (middle, half)) in enumerate(LENGTHS.items())
            }
            hue = float(np.arctan2(sin, cos) / (2 * np.pi) % 1)
            readings.append(Reading(**found, hue=hue, **lengths))
    return readings


def load(path: Path = FILE) -> Reader:
    """The shipped reader."""
    model = Reader()
    model.load_state_dict({n: t.float() for n, t in load_file(path).items()})
    return model.eval()


def store(model: Reader, path: Path = FILE) -> None:
    """Write a reader's weights in half precision."""
    save_file({n: t.half().contiguous() for n, t in model.state_dict().items()}, path)


def spoil(
    picture: np.ndarray, who: Identity, what: Attributes, rng: np.random.Generator
) -> np.ndarray:
    """Make a picture of the same place whose dog is none of the poses."""
    kind = int(rng.integers(5))
    bare = world.landscape(who, what.place)
    if kind == 0:
        return bare
    if kind == 1:  # two poses at once
        other = str(rng.choice([p for p in world.POSES if p != what.pose]))
        second = world.render(who, what._replace(pose=other))
        return ((picture.astype(np.uint16) + second) // 2).astype(np.uint8)
    if kind == 2:  # two heads or two tails
        joined, middle = picture.copy(), round(who.x)
        width = min(middle, world.SIZE - middle)
        left = picture[:, middle - width : middle]
        right = picture[:, middle : middle + width]
        if rng.random() < 0.5:
            joined[:, middle : middle + width] = left[:, ::-1]
        else:
            joined[:, middle - width : middle] = right[:, ::-1]
        return joined
    if kind == 3:  # the dog's half is missing
        cut, middle = picture.copy(), round(who.x + rng.uniform(-6, 6))
        side = slice(None, middle) if rng.random() < 0.5 else slice(middle, None)
        cut[:, side] = bare[:, side]
        return cut
    # a smear: the lower picture is bent by large smooth shifts
    grid = torch.from_numpy(rng.uniform(-0.45, 0.45, (1, 2, 5, 5))).float()
    bend = F.interpolate(grid, size=(128, 128), mode="bicubic", align_corners=True)
    flow = bend.permute(0, 2, 3, 1)
    base = F.affine_grid(torch.eye(2, 3)[None], [1, 3, 128, 128], align_corners=False)
    dog = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    bent = F.grid_sample(dog, base + flow, padding_mode="reflection", align_corners=False)
    return bent[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def _soften(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    # Judged pictures come from an autoencoder: blur and noise as it leaves them.
    if rng.random() < 0.5:
        size = int(rng.integers(48, 100))
        small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        x = F.interpolate(small, size=(128, 128), mode="bicubic")
    return (x + float(rng.uniform(0, 0.05)) * torch.randn_like(x)).clamp(0, 1)


def loss(
    model: Reader,
    pictures: np.ndarray,
    truths: list[tuple[Identity, Attributes]],
    rng: np.random.Generator,
) -> torch.Tensor:
    """One batch's loss; a fifth of the dogs is spoilt and only their place is asked for then."""
    spoilt = rng.random(len(truths)) < 0.2
    shown = np.stack(
        [
            spoil(p, *truth, rng) if bad else p
            for p, truth, bad in zip(pictures, truths, spoilt, strict=True)
        ]
    )
    device = next(model.parameters()).device
    x = _soften(torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255, rng).to(device)
    out = {name: v.float() for name, v in model(x).items()}
    sound = torch.from_numpy(~spoilt).float().to(device)
    total = out["pose"].new_zeros(())
    for name, values in CLASSES.items():
        labels = [
            values.index(getattr(who if hasattr(who, name) else what, name)) for who, what in truths
        ]
        if name == "pose":
            labels = [len(values) - 1 if bad else n for n, bad in zip(labels, spoilt, strict=True)]
        each = F.cross_entropy(out[name], torch.tensor(labels, device=device), reduction="none")
        total = total + (each.mean() if name in ("pose", "place") else (each * sound).mean())
    angle = torch.tensor([who.hue for who, _ in truths], device=device) * 2 * np.pi
    hue = torch.stack([angle.cos(), angle.sin()], 1)
    lengths = torch.tensor(
        [
            [(getattr(who, n) - middle) / half for n, (middle, half) in LENGTHS.items()]
            for who, _ in truths
        ],
        device=device,
    )
    total = total + 2 * ((out["hue"] - hue).pow(2).mean(1) * sound).mean()
    return total + ((out["lengths"] - lengths).pow(2).mean(1) * sound).mean()
