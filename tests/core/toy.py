"""A denoiser of a few numbers, whose equation 3 can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from imagic_core.objective import Embedding, Photographs


class ToyDenoiser:
    """Predicts noise or velocity as a fixed linear function of x_t and of the embedding's sum."""

    compute_dtype = torch.float32

    def __init__(self, kind: str = "eps") -> None:
        self.kind = kind
        self.sigmas = (
            torch.linspace(0.05, 0.95, 10) if kind == "flow" else torch.logspace(-1, 1, 10)
        )
        generator = torch.Generator().manual_seed(7)
        self.text = torch.randn(3, 4, generator=generator) * 0.1
        self.pooled = torch.randn(3, 2, generator=generator) * 0.1
        self.gain = torch.full((3, 1, 1), 0.3)
        self.calls: list[int] = []

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.view(-1, 1, 1, 1)
        if self.kind == "flow":
            return (1 - sigma) * x0 + sigma * noise
        return x0 + sigma * noise

    def output(self, x_t: Tensor, embedding: Embedding) -> Tensor:
        shift = self.text @ torch.tanh(embedding.tokens.sum((0, 1)))
        if embedding.pooled is not None:
            shift = shift + self.pooled @ embedding.pooled[0]
        return self.gain * x_t + shift.view(1, 3, 1, 1)

    def predict(self, x_t: Tensor, sigma: Tensor, embedding: Embedding) -> Tensor:
        self.calls.append(len(x_t))
        output, sigma = self.output(x_t, embedding), sigma.view(-1, 1, 1, 1)
        if self.kind == "v":
            return x_t / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
        return x_t - sigma * output

    def output_scale(self, sigma: Tensor) -> Tensor:
        return -sigma / (sigma**2 + 1) ** 0.5 if self.kind == "v" else -sigma

    def true_output(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What a perfect network would put out: noise, v, or the flow's velocity."""
        sigma = sigma.view(-1, 1, 1, 1)
        if self.kind == "flow":
            return noise - x0
        if self.kind == "v":
            return (noise - sigma * x0) / (sigma**2 + 1) ** 0.5
        return noise


def photograph(count: int = 1) -> Photographs:
    return Photographs(torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(1)))


def sentence(pooled: bool = True) -> Embedding:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(1, 6, 4, generator=generator)
    return Embedding(tokens, torch.randn(1, 2, generator=generator) if pooled else None)
