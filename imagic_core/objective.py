"""Equation 3: L(x, e, theta) = E_{t, eps} || eps - f_theta(x_t, t, e) ||^2.

The expectation is over timesteps uniform on the model's own schedule and over Gaussian noise.
The error is measured in what the network itself predicts, be that noise (eps), velocity (v or
flow) or the picture: every such prediction is an affine function of the denoised picture, so the
error of the network's output is the error of the denoised picture over d x0 / d output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embedding:
    """A text embedding e, as the diffusion model consumes it.

    Attributes:
        tokens: [1, T, W] one vector for each token.
        pooled: [1, P] the vector of the whole sentence, or None where the encoder gives none.
        more: [1, ..., W] what further text encoders gave, name -> tensor.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """The tensors there are: `tokens`, `pooled` if any, and those of ``more``."""
        pooled = {} if self.pooled is None else {"pooled": self.pooled}
        return {"tokens": self.tokens, **pooled, **self.more}

    def tensors(self) -> list[Tensor]:
        """The same without their names."""
        return list(self.named().values())

    def with_tensors(self, tensors: Iterable[Tensor]) -> Embedding:
        """Others in the place of ``tensors``, in their order."""
        found = dict(zip(self.named(), tensors, strict=True))
        return Embedding(found.pop("tokens"), found.pop("pooled", None), found)


@dataclass(frozen=True)
class Photographs:
    """What is to be learned, and where to be faithful to it.

    Attributes:
        x0: [B, C, ...] the photographs' latents, scaled as the model wants them.
        mask: [B or 1, 1, ...] weight of each place, 0 to 1, or None where all count alike.
    """

    x0: Tensor
    mask: Tensor | None = None

    def weight(self, photo: Tensor) -> Tensor:
        """[n, 1, ...] weight of each place of the photographs ``photo`` [n]."""
        if self.mask is None:
            return torch.ones_like(self.x0[photo, :1])
        return self.mask[photo % len(self.mask)]

    def to(self, device: torch.device) -> Photographs:
        """The same photographs on another device."""
        return Photographs(self.x0.to(device), None if self.mask is None else self.mask.to(device))


class Denoiser(Protocol):
    """f_theta of the paper, seen through the picture that it would denoise to."""

    sigmas: Tensor
    """[N] noise levels of the model's schedule, one for each timestep."""

    compute_dtype: torch.dtype
    """The number format in which the network computes."""

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x_t from x0 [n, C, ...], noise (same shape) and sigma [n]."""
        ...

    def predict(self, x_t: Tensor, sigma: Tensor, embedding: Embedding) -> Tensor:
        """The x0 estimate [n, C, ...], differentiable in the embedding and the weights."""
        ...

    def output_scale(self, sigma: Tensor) -> Tensor:
        """[n] derivative of the denoised picture by the network's output."""
        ...


@dataclass(frozen=True)
class Draws:
    """Samples of (photograph, t, eps) for the expectation in equation 3.

    Attributes:
        photo: [n] which of the photographs.
        sigma: [n] noise level of the timestep drawn.
        noise: [n, C, ...] eps.
    """

    photo: Tensor
    sigma: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.sigma)

    def split(self, size: int) -> Iterator[Draws]:
        """The same draws, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Draws(self.photo[part], self.sigma[part], self.noise[part])

    def to(self, device: torch.device) -> Draws:
        """The same draws on another device."""
        return replace(
            self,
            photo=self.photo.to(device),
            sigma=self.sigma.to(device),
            noise=self.noise.to(device),
        )


def draw(
    sigmas: Tensor,
    photographs: Photographs,
    count: int,
    generator: torch.Generator,
    *,
    stratified: bool = False,
) -> Draws:
    """Draw ``count`` samples of (photograph, timestep, noise).

    Everything is drawn on the CPU, so that a seed means the same on every device.

    Args:
        sigmas: [N] the model's schedule; a timestep is uniform over its indices.
        photographs: each draw takes one, in turn.
        count: number of draws, at least 1.
        generator: CPU generator; the only source of randomness.
        stratified: one timestep from each of ``count`` equal parts of the schedule. Same
            expectation, lower variance.
    """
    x0 = photographs.x0
    u = torch.rand(count, generator=generator)
    if stratified:
        u = (torch.arange(count) + u) / count
    timestep = (u * len(sigmas)).long().clamp(max=len(sigmas) - 1)
    first = int(torch.randint(len(x0), (1,), generator=generator))
    photo = (first + torch.arange(count)) % len(x0)
    noise = torch.randn((count, *x0.shape[1:]), generator=generator)
    return Draws(photo, sigmas.cpu()[timestep].float(), noise).to(x0.device)


def append_dims(values: Tensor, like: Tensor) -> Tensor:
    """[n] values as [n, 1, ...], to be multiplied with a tensor [n, C, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def reconstruction_loss(
    denoiser: Denoiser, photographs: Photographs, embedding: Embedding, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Equation 3 over the given draws.

    Args:
        denoiser: the model.
        photographs: x, and where to be faithful to it.
        embedding: e.
        draws: samples of (photograph, t, eps).

    Returns:
        [n] the mean squared error of the network's output for each draw, and [n, C, ...] the x0
        estimates.
    """
    x0, weight = photographs.x0[draws.photo], photographs.weight(draws.photo)
    x_t = denoiser.add_noise(x0, draws.noise, draws.sigma)
    estimate = denoiser.predict(x_t, draws.sigma, embedding)
    error = ((estimate - x0) / append_dims(denoiser.output_scale(draws.sigma), x0)) ** 2
    weighted = (error.mean(1, keepdim=True) * weight).flatten(1).sum(1)
    return weighted / weight.flatten(1).sum(1), estimate.detach()
