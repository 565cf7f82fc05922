"""The model as a ``Denoiser``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...imagic_core.objective import Embedding, append_dims
from .in_place import copied_before_change, mapped
from .sockets import Model, conditioning_entry
from .wrappers import training_wrappers


class HostDenoiser:
    """A loaded MODEL as ``imagic_core`` sees it. Made by ``trainable``.

    Attributes:
        changes_in_place: whether the network changes what autograd keeps of it.
        draw_bytes: what one draw takes, forth and back, beside the weights; None if unknown.
        transformer_options: see the host's sampling.
    """

    def __init__(
        self, patcher: Model, x0: Tensor, options: Mapping[str, Any], compute_dtype: torch.dtype
    ) -> None:
        """Take the loaded patcher, the photographs and the conditioning's other entries."""
        self.model = patcher.model
        self.sampling = self.model.model_sampling
        self.sigmas = training_sigmas(self.sampling).to(x0.device)
        self.compute_dtype = compute_dtype
        # Copies: tensors made in another node's inference mode may not take part in training.
        self.options = mapped(lambda t: t.detach().clone().to(x0.device), options)
        self.latent_image = x0[:1]
        self.passes = 0
        self.changes_in_place = False
        self.draw_bytes: int | None = None
        self.wrappers = training_wrappers(patcher)
        self.transformer_options = {
            **patcher.model_options.get("transformer_options", {}),
            "wrappers": self.wrappers.by_kind,
            "cond_or_uncond": [0],
        }

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        return self.sampling.noise_scaling(append_dims(sigma, x0), noise, x0, False)

    def predict(self, x_t: Tensor, sigma: Tensor, embedding: Embedding) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        self.passes += 1
        # Copies: some models change their text in place, which a leaf of autograd's must not be.
        text = embedding.with_tensors(tensor.clone() for tensor in embedding.tensors())
        entry = conditioning_entry(text, self.options)
        # The seed is of the noise that upscalers add to their low-resolution picture.
        cond = encoded(self.model, entry, x_t, self.latent_image, seed=self.passes)
        inputs = {
            name: value.process_cond(batch_size=len(x_t), area=None).cond
            for name, value in cond["model_conds"].items()
        }
        options = {**self.transformer_options, "sigmas": sigma, "uuids": [cond["uuid"]]}
        inputs["transformer_options"] = options
        with copied_before_change() if self.changes_in_place else nullcontext():
            if self.wrappers.function is None:
                return self.model.apply_model(x_t, sigma, **inputs)
            wrapped = {"input": x_t, "timestep": sigma, "c": inputs, "cond_or_uncond": [0]}
            return self.wrappers.function(self.model.apply_model, wrapped)

    def output_scale(self, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``: every model sampling is affine in its output."""
        one, none = sigma.new_ones(len(sigma), 1, 1, 1), sigma.new_zeros(len(sigma), 1, 1, 1)
        scale = self.sampling.calculate_denoised(sigma, one, none)
        return (scale - self.sampling.calculate_denoised(sigma, none, none)).view_as(sigma)


def encoded(
    model: Any, entry: list[Any], x_t: Tensor, latent_image: Tensor, seed: int
) -> dict[str, Any]:
    """An entry of a CONDITIONING with ``model_conds``: what the host's ``model`` makes of it."""
    (cond,) = comfy.samplers.encode_model_conds(
        model.extra_conds,
        comfy.sampler_helpers.convert_cond([entry]),
        x_t,
        x_t.device,
        "positive",
        latent_image=latent_image,
        denoise_mask=None,
        seed=seed,
    )
    return cond


def training_sigmas(sampling: Any) -> Tensor:
    """[N] noise levels, rising, of which training draws each as often.

    They are the model's own timesteps. Where its list is even in log sigma, it was made to be
    looked up, and half of it is noise that nobody sees or a picture that nobody sees; there the
    levels are even in the angle of the mixture of picture and noise, which is the cosine schedule
    of the paper's Imagen.
    """
    sigmas = sampling.sigmas.detach().clone().float()
    steps = sigmas.log().diff()
    if not torch.allclose(steps, steps.mean(), rtol=1e-2):
        return sigmas
    spread = getattr(sampling, "sigma_data", 1.0)
    first, last = (sigmas[[0, -1]] / spread).atan().tolist()
    return torch.linspace(first, last, len(sigmas), device=sigmas.device).tan() * spread


def to_device(embedding: Embedding, device: torch.device) -> Embedding:
    """The same embedding on another device."""
    return embedding.with_tensors(tensor.to(device) for tensor in embedding.tensors())
