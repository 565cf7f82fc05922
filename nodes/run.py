"""What the two training nodes share: their inputs, and how a training runs within the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..imagic_core.fit import Settings
from ..imagic_core.objective import Embedding
from . import comfy_host

Result = TypeVar("Result")

CATEGORY = "Imagic"
TOOLS = "Imagic/tools"
DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
LATENT_PLACES_AT_ONCE = 64 * 64  # one picture of 512 px in an 8x autoencoder


def common_inputs(default: Settings, what: str) -> list[io.Input]:
    """Inputs steps, learning_rate and seed, with the defaults and the subject of the stage."""
    return [
        io.Int.Input(
            "steps",
            default=default.steps,
            min=1,
            max=100_000,
            tooltip=f"Training steps of {what}. More steps follow the photograph more closely.",
        ),
        io.Float.Input(
            "learning_rate",
            default=default.learning_rate,
            min=0.0,
            max=1.0,
            step=1e-7,
            round=False,
            tooltip=f"Adam's step size for {what}. 0 changes nothing.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            # Not randomised after each run: another seed would train again for another eta.
            control_after_generate=False,
            tooltip="Seed of the noise and the timesteps. Same seed and inputs, same result.",
        ),
    ]


def optional_inputs(paper: Settings) -> list[io.Input]:
    """Inputs that a user may leave alone; ``paper`` is the stage's recipe in the paper."""
    return [
        io.Combo.Input(
            "recipe",
            options=["as set", "paper"],
            default="as set",
            optional=True,
            tooltip=f"paper: as the paper trains Stable Diffusion, {paper.steps} steps at "
            f"{paper.learning_rate:g}, one draw each, and of the model all weights; what is set "
            "here is ignored.",
        ),
        io.Int.Input(
            "batch_size",
            default=4,
            min=1,
            max=256,
            optional=True,
            tooltip="Draws of noise averaged in each step. More is steadier, slower, and takes no "
            "more memory.",
        ),
        io.Combo.Input(
            "training_dtype",
            options=list(DTYPES),
            default="auto",
            optional=True,
            tooltip="Number format to compute in while training. auto is the model's own, so that "
            "the result is exact when sampled. What is learned is always kept in float32.",
        ),
        io.Combo.Input(
            "save_memory",
            options=["auto", "on", "off"],
            default="auto",
            optional=True,
            tooltip="Recompute the model's blocks in the backward pass instead of keeping them: "
            "less memory, about a third slower, same result. auto does so when memory runs out.",
        ),
    ]


def settings(recipe: str, paper: Settings, own: Settings, x0: Tensor) -> Settings:
    """The recipe's settings, with as many draws at once as fit a picture of 512 px.

    Args:
        recipe: `paper`, or `as set`.
        paper: the stage's settings in the paper.
        own: the settings on the node.
        x0: [B, C, ...] the photographs' latents.
    """
    chosen = replace(paper, seed=own.seed) if recipe == "paper" else own
    at_once = max(1, LATENT_PLACES_AT_ONCE // x0[0, 0].numel())
    return replace(chosen, micro_batch=min(chosen.batch_size, at_once))


def within_memory(node: str, save_memory: str, train: Callable[[bool], Result]) -> Result:
    """Train; start over with recomputed blocks if the memory does not suffice.

    Raises:
        RuntimeError: it does not suffice even so.
    """
    attempts = {"auto": (False, True), "on": (True,), "off": (False,)}[save_memory]
    for recompute in attempts:
        try:
            return train(recompute)
        except torch.OutOfMemoryError:
            comfy.model_management.soft_empty_cache()
            comfy_host.log("%s: out of memory, recomputing blocks to save some", node)
    raise RuntimeError(
        f"{node}: not enough memory. Use a smaller picture, method 'lora' with a lower rank, "
        "save_memory 'on', or a model in a smaller number format."
    )


def check_fits(
    node: str,
    socket: str,
    denoiser: comfy_host.HostDenoiser,
    x0: Tensor,
    embedding: Embedding,
) -> None:
    """Pass the photograph through the model once, before the long work starts.

    Raises:
        ValueError: the conditioning does not fit the model.
    """
    try:
        with torch.no_grad():
            sigma = denoiser.sigmas[-1:]
            denoiser.predict(denoiser.add_noise(x0[:1], x0[:1], sigma), sigma, embedding)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        pooled = None if embedding.pooled is None else tuple(embedding.pooled.shape)
        raise ValueError(
            f"{node}: the model cannot take '{socket}' with tokens {tuple(embedding.tokens.shape)} "
            f"and pooled vector {pooled} beside the latent {tuple(x0.shape)}; connect the text "
            f"encoder and the VAE that belong to this model. The model said: {error}"
        ) from error
