"""Text2LIVE (Bar-Tal et al., ECCV 2022), with which the paper compares: a painted layer.

A small network learns, from one photograph and CLIP alone, to paint an edit with an opacity of its
own over the photograph. It can recolour and change textures; it is held to the photograph's
structure, so that it cannot move anything. Weights of the losses are those of the paper's code, as
is the opacity's beginning where CLIP sees what is to be painted over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fit import Progress

WIDTH, SCALES, SMALLEST = 64, 7, 8
SCREEN = (0.0, 177 / 255, 64 / 255)
STRUCTURE, SPARSITY, PLACE = 2.0, 0.06, 10.0
PHOTOGRAPH_COVER, VIEW_COVER = 0.85, 0.6


class Eyes(Protocol):
    """CLIP's, on the photograph's device."""

    def see(self, pictures: Tensor, /) -> tuple[Tensor, Tensor]:
        """What CLIP makes of each picture [B, 3, H, W] in 0..1, [B, D], with a gradient.

        Also the tokens [B, N, W] before its last layer.
        """

    def relevance(self, picture: Tensor, sentence: Tensor, /) -> Tensor:
        """Where a picture [1, 3, H, W] shows what a sentence [D] says: [1, 1, H, W] in 0..1."""


@dataclass(frozen=True)
class Settings:
    """How long and how hard to train.

    Attributes:
        steps: of Adam, at least 1.
        learning_rate: Adam's, which falls evenly to 0.
        seed: of the network's weights, the crops and the flips.
        views: crops of the result that CLIP looks at in each step.
    """

    steps: int = 200
    learning_rate: float = 2.5e-3
    seed: int = 0
    views: int = 4


class Told(NamedTuple):
    """What CLIP makes of the sentences, each [D].

    Attributes:
        target: what the picture shall show.
        screen: the same of the painted layer alone, over a green screen.
        source: what the photograph shows.
        region: what of it is painted over; None leaves that to the training.
    """

    target: Tensor
    screen: Tensor
    source: Tensor
    region: Tensor | None = None


class Layer(NamedTuple):
    """What was painted: ``colour`` [1, 3, H, W] and ``opacity`` [1, 1, H, W], both in 0..1."""

    colour: Tensor
    opacity: Tensor

    def over(self, ground: Tensor) -> Tensor:
        """The layer over a picture [1, 3, H, W] or a colour [1, 3, 1, 1]."""
        return self.opacity * self.colour + (1 - self.opacity) * ground


class Painter(nn.Module):
    """A U-Net from a photograph to its layer."""

    def __init__(self, height: int, width: int) -> None:
        """As deep as pictures of this size allow; weights from PyTorch's global generator."""
        super().__init__()
        scales = int(math.log2(max(min(height, width) / SMALLEST, 2)))
        inputs = [3] + [WIDTH] * (min(scales, SCALES) - 1)
        self.down = nn.ModuleList(_block(n, stride=2) for n in inputs)
        self.beside = nn.ModuleList(nn.Conv2d(n, 4, 1) for n in inputs)
        self.up = nn.ModuleList(_block(WIDTH + 4) for _ in inputs)
        self.out = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, picture: Tensor) -> Layer:
        """[1, 3, H, W] in 0..1 to its layer."""
        x, passed = picture, []
        for down, beside in zip(self.down, self.beside, strict=True):
            passed.append(beside(x))
            x = down(x)
        for up, skip in zip(reversed(self.up), reversed(passed), strict=True):
            x = up(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], 1))
        colour, opacity = torch.sigmoid(self.out(x)).split((3, 1), 1)
        return Layer(colour, opacity)


def _block(channels: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, step in ((channels, stride), (WIDTH, 1)):
        layers += [
            nn.Conv2d(n, WIDTH, 3, stride=step, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(WIDTH, affine=True),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers)


def paint(
    photograph: Tensor,
    eyes: Eyes,
    told: Told,
    settings: Settings,
    on_step: Callable[[Progress], None],
) -> tuple[Layer, list[float]]:
    """Train a painter on one photograph.

    Args:
        photograph: [1, 3, H, W] in 0..1, at least 2 * ``SMALLEST`` wide and high.
        eyes: of the CLIP that the sentences are told by.
        told: on the photograph's device.
        settings: steps, seed and views.
        on_step: called after each step, its estimate the crop as it was painted; what it raises
            ends the training and passes through.

    Returns:
        The layer of the whole photograph, and the loss of each step.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        painter = Painter(*photograph.shape[-2:]).to(photograph.device)
    optimiser = torch.optim.Adam(painter.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    clip = _Losses(eyes, told, settings.views, generator)
    given = [photograph]
    if told.region is not None:
        given.append(eyes.relevance(photograph, told.region))
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        part = _crop(torch.cat(given, 1), PHOTOGRAPH_COVER, generator)
        if torch.rand((), generator=generator) < 0.5:
            part = part.flip(-1)
        crop, place = part[:, :3], part[:, 3:]
        layer = painter(crop)
        # CLIP's passes end at the layer, one view after the other, so that the memory is of one.
        leaf = Layer(*(t.detach().requires_grad_() for t in layer))
        rest = 1 - (step - 1) / settings.steps
        terms = chain(_of_opacity(leaf.opacity, place, rest), clip.of(leaf, crop))
        loss = sum(_backward(term) for term in terms)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss}: the learning rate {settings.learning_rate:g} "
                "is too high"
            )
        optimiser.zero_grad()
        torch.autograd.backward(list(layer), [t.grad for t in leaf])
        optimiser.step()
        schedule.step()
        losses.append(loss)
        on_step(Progress(step, settings.steps, loss, layer.over(crop).detach()))
    with torch.no_grad():
        return painter(photograph), losses


def _backward(term: Tensor) -> float:
    term.backward()
    return term.item()


def _of_opacity(opacity: Tensor, place: Tensor, rest: float) -> Iterator[Tensor]:
    """What is asked of the opacity: little of it and, at first, in its place."""
    yield SPARSITY * (opacity.mean() + (2 * torch.sigmoid(5 * opacity) - 1).mean())
    if place.numel():
        yield PLACE * rest * F.mse_loss(opacity, place)


@dataclass(frozen=True)
class _Losses:
    """What CLIP asks of a layer, looking at it ``views`` times."""

    eyes: Eyes
    told: Told
    views: int
    generator: torch.Generator

    def of(self, layer: Layer, crop: Tensor) -> Iterator[Tensor]:
        """The terms for a layer of this crop of the photograph."""
        with torch.no_grad():
            structure = self_similarity(self.eyes.see(crop)[1])
        found = self_similarity(self.eyes.see(layer.over(crop))[1])
        yield STRUCTURE * F.mse_loss(found, structure)
        screen = torch.tensor(SCREEN).view(1, 3, 1, 1).to(crop)
        for _ in range(self.views):
            three = torch.cat([layer.over(crop), layer.over(screen), crop])
            view = _crop(three, VIEW_COVER, self.generator)
            composite, alone = self.eyes.see(view[:2])[0]
            with torch.no_grad():
                (before,) = self.eyes.see(view[2:])[0]
            yield (
                _distance(composite, self.told.target)
                + _distance(composite - before, self.told.target - self.told.source)
                + _distance(alone, self.told.screen)
            ) / self.views


def self_similarity(tokens: Tensor) -> Tensor:
    """Cosines between all pairs of tokens [B, N, W]: [B, N, N]."""
    tokens = F.normalize(tokens, dim=-1)
    return tokens @ tokens.mT


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1)


def _crop(pictures: Tensor, cover: float, generator: torch.Generator) -> Tensor:
    """A part of at least ``cover`` of each side, at a place by chance."""
    height, width = pictures.shape[-2:]
    share, down, right = torch.rand(3, generator=generator).tolist()
    share = cover + (1 - cover) * share
    h, w = round(height * share), round(width * share)
    top, left = round((height - h) * down), round((width - w) * right)
    return pictures[..., top : top + h, left : left + w]
