"""The model as a ``Denoiser``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...imagic_core.objective import Embedding, append_dims
from .sockets import Model


class HostDenoiser:
    """A loaded MODEL as ``imagic_core`` sees it. Made by ``trainable``."""

    def __init__(
        self, patcher: Model, x0: Tensor, options: Mapping[str, Any], compute_dtype: torch.dtype
    ) -> None:
        """Take the loaded patcher, the photographs and the conditioning's other entries."""
        self.model = patcher.model
        self.sampling = self.model.model_sampling
        self.sigmas = self.sampling.sigmas.detach().clone().float().to(x0.device)
        self.compute_dtype = compute_dtype
        self.options = _on_device(options, x0.device)
        self.latent_image = x0[:1]
        self.passes = 0
        self.transformer_options = {
            **patcher.model_options.get("transformer_options", {}),
            "cond_or_uncond": [0],
            "optimized_attention_override": _differentiable_attention,
        }

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        return self.sampling.noise_scaling(append_dims(sigma, x0), noise, x0, False)

    def predict(self, x_t: Tensor, sigma: Tensor, embedding: Embedding) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        self.passes += 1
        entry = [embedding.tokens, {**self.options, "pooled_output": embedding.pooled}]
        (cond,) = comfy.samplers.encode_model_conds(
            self.model.extra_conds,
            comfy.sampler_helpers.convert_cond([entry]),
            x_t,
            x_t.device,
            "positive",
            latent_image=self.latent_image,
            denoise_mask=None,
            seed=self.passes,  # of the noise that upscalers add to their low-resolution picture
        )
        inputs = {
            name: value.process_cond(batch_size=len(x_t), area=None).cond
            for name, value in cond["model_conds"].items()
        }
        options = {**self.transformer_options, "sigmas": sigma}
        return self.model.apply_model(x_t, sigma, **inputs, transformer_options=options)

    def output_scale(self, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``: every model sampling is affine in its output."""
        places = sigma.view(-1, 1, 1, 1)
        one, none = torch.ones_like(places), torch.zeros_like(places)
        scale = self.sampling.calculate_denoised(places, one, none)
        return (scale - self.sampling.calculate_denoised(places, none, none)).view_as(sigma)


def _on_device(value: Any, device: torch.device) -> Any:
    """Copies that may take part in training, of tensors made in another node's inference mode."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, Mapping):
        return {k: _on_device(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_device(v, device) for v in value)
    return value


def to_device(embedding: Embedding, device: torch.device) -> Embedding:
    """The same embedding on another device."""
    return Embedding(*(tensor.to(device) for tensor in embedding.tensors()))


def _differentiable_attention(_func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    # Sage and other attention kernels that users choose for speed have no backward pass.
    return attention_pytorch(*args, **kwargs)
