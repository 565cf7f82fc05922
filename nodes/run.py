"""What the two training nodes share: their inputs, and how a training runs within the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..imagic_core.fit import Progress, Settings
from ..imagic_core.objective import Embedding
from . import comfy_host
from .progress import Reporter

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
    unit = ", as a share of its own size" if default.relative else ""
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
            tooltip=f"Adam's step size for {what}{unit}. It falls evenly to 0 at the last step. "
            "0 changes nothing.",
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


@dataclass(frozen=True)
class Training:
    """What a stage works on, on the model's device.

    Attributes:
        denoiser: the model, with ``changes`` applied to its weights.
        x0: [B, C, ...] the photographs' latents.
        mask: [B or 1, 1, ...] where to be faithful, or None.
        text: the conditioning as it came in.
        embedding: its embedding.
        changes: of the weights, state dict key -> module; empty where the model stays as it is.
        settings: how long and how hard to train.
        on_step: reports a step, and raises when the user cancels.
    """

    denoiser: comfy_host.HostDenoiser
    x0: Tensor
    mask: Tensor | None
    text: comfy_host.Text
    embedding: Embedding
    changes: dict[str, torch.nn.Module]
    settings: Settings
    on_step: Callable[[Progress], None]


def train(
    node: str,
    socket: str,
    model: Any,
    conditioning: Any,
    image: dict[str, Any],
    stage: Callable[[Training], Result],
    new_changes: Callable[[], dict[str, torch.nn.Module]] = dict,
    *,
    settings: Settings,
    training_dtype: str,
    save_memory: str,
) -> Result:
    """Read and check what is wired to a training node, then run its stage.

    Args:
        node: name of the node, for errors.
        socket: name of the CONDITIONING's input, for errors.
        model: MODEL; it is left as it is.
        conditioning: CONDITIONING of one sentence.
        image: LATENT of the photographs.
        stage: trains, and returns what the node needs; called again if the memory did not suffice.
        new_changes: makes the untrained changes of the weights, for each call of ``stage``.
        settings: how long and how hard; as many draws at once as fit a picture of 512 px.
        training_dtype: one of ``DTYPES``.
        save_memory: `on`, `off`, or `auto`: when the memory does not suffice.

    Raises:
        ValueError: something that is wired cannot be used; the message says what to do.
        RuntimeError: the memory does not suffice.
    """
    comfy_host.check_trainable(node, model)
    text = comfy_host.read_text(node, socket, conditioning)
    photographs, mask = comfy_host.read_image(node, model, image)
    at_once = max(1, LATENT_PLACES_AT_ONCE // photographs[0, 0].numel())
    settings = replace(settings, micro_batch=min(settings.batch_size, at_once))

    def attempt(recompute: bool) -> Result:
        changes = new_changes()
        with comfy_host.training(
            model,
            photographs,
            text,
            changes,
            compute_dtype=DTYPES[training_dtype],
            save_memory=recompute,
        ) as (denoiser, x0):
            embedding = comfy_host.to_device(text.embedding, x0.device)
            check_fits(node, socket, denoiser, x0, embedding)
            return stage(
                Training(
                    denoiser,
                    x0,
                    None if mask is None else mask.to(x0.device),
                    text,
                    embedding,
                    changes,
                    settings,
                    Reporter(model, settings.steps),
                )
            )

    return within_memory(node, save_memory, attempt)


def within_memory(node: str, save_memory: str, attempt: Callable[[bool], Result]) -> Result:
    """Train; start over with recomputed blocks if the memory does not suffice.

    Raises:
        RuntimeError: it does not suffice even so.
    """
    attempts = {"auto": (False, True), "on": (True,), "off": (False,)}[save_memory]
    for recompute in attempts:
        try:
            return attempt(recompute)
        except torch.OutOfMemoryError:
            comfy_host.LOGGER.info("%s: out of memory, recompute blocks: %s", node, recompute)
        # Not before the exception is gone, whose traceback holds all that the attempt had made.
        comfy.model_management.soft_empty_cache()
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
