"""The noise from which a model draws a photograph, and a MODEL whose sampling begins with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..errors import BadInputError
from .probe import REFUSALS
from .sockets import LOGGER, Conditioning, Latent, Model

STEPS = 20
"""Of the flow back. More, or a solver of higher order, were measured to draw the same edits."""

_KEY = "imagic_own_noise"
_ADDS_NOISE = re.compile("ancestral|sde|ddpm|lcm")


def noise_of(model: Model, conditioning: Conditioning, image: Latent) -> Tensor:
    """The noise [B, C, ...] in units of a seed's, from which ``model`` draws ``image``.

    It is where the probability flow ends that is followed from the picture to the noise: the first
    half of DDIB (Su et al., 2023), under ``conditioning`` and without guidance.

    Args:
        model: MODEL; it is sampled, and left as it is.
        conditioning: under which it draws the photograph, as e_opt.
        image: LATENT that ``read_photographs`` takes.

    Raises:
        BadInputError: the model takes no such conditioning, or no such picture.
    """
    sampling = model.get_model_object("model_sampling")
    samples = comfy.sample.fix_empty_latent_channels(model, image["samples"])
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).flip(0)
    # Samplers divide by the first, and the host by what the last leaves of the picture.
    sigmas[0] = 1e-3 * sigmas[1]
    sigmas[-1] *= 0.999
    try:
        found = comfy.samplers.sample(
            model,
            torch.zeros_like(samples),
            conditioning,
            conditioning,
            1.0,
            model.load_device,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            model.model_options,
            latent_image=samples,
            callback=latent_preview.prepare_callback(model, STEPS),
            disable_pbar=True,
            seed=0,
        )
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise BadInputError(
            f"'as_loaded' cannot draw an 'image' of {tuple(samples.shape)} under 'optimized'; wire "
            "the model and the photograph that Imagic Optimize Embedding was given, and its "
            f"output. The model said: {error}"
        ) from error
    x, last = model.model.process_latent_in(found.float().cpu()), sigmas[-1].cpu()
    none = torch.zeros_like(x)
    x = sampling.noise_scaling(last, none, x)
    return x / sampling.noise_scaling(last, torch.ones_like(x), none, True)


def beginning_with(model: Model, noise: Tensor, share: float) -> Model:
    """A copy of ``model`` that draws from ``noise`` [B, C, ...] mixed with a seed's.

    Args:
        model: MODEL; one that begins with a noise of its own loses that.
        noise: from ``noise_of``; pictures take its rows in turn.
        share: of ``noise`` in the variance of the mixture, in [0, 1]; at 1 no seed matters.
    """
    changed = model.clone()
    changed.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, _KEY)
    changed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _Beginning(noise, share))
    return changed


@dataclass(frozen=True)
class _Beginning:
    """Around a whole sampling; what only goes on from a picture, or brings no noise, is left."""

    noise: Tensor
    share: float

    def __call__(
        self,
        executor: WrapperExecutor,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        if sigmas[0] > 0.999 * float(sampling.sigma_max) and noise.count_nonzero():
            noise = self.mixed(noise)
            name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
            if _ADDS_NOISE.search(name):
                LOGGER.warning(
                    "Imagic Photograph's Noise: the sampler (%s) adds noise of its own at each "
                    "step, so little of the photograph's is left; choose euler or dpmpp_2m",
                    name.removeprefix("sample_"),
                )
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def mixed(self, noise: Tensor) -> Tensor:
        if noise.shape[1:] != self.noise.shape[1:]:
            raise BadInputError(
                "Imagic Photograph's Noise: its 'image' is a latent of "
                f"{_size(self.noise)}, but what is drawn is one of {_size(noise)}; draw at the "
                "size of the photograph, or wire KSampler's 'model' from before that node."
            )
        own = self.noise.to(noise)[torch.arange(len(noise)) % len(self.noise)]
        return self.share**0.5 * own + (1 - self.share) ** 0.5 * noise


def _size(latent: Tensor) -> str:
    return " x ".join(map(str, latent.shape[1:]))
