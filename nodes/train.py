"""How a training node runs its stage: what is wired, read once, and a run within the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ..imagic_core.checkpoint import Keeper
from ..imagic_core.edit import Sentence
from ..imagic_core.fit import Progress, Settings
from ..imagic_core.objective import Embedding, Photographs
from . import comfy_host
from .errors import BadInputError, OutOfMemoryError
from .kept import Learned, Shelf, keeping
from .memory import GB, TightError, Way, at_least, check_free, memory, ways
from .progress import Reporter, drawn_latent, say

RECIPES = ("as set", "fast", "paper")
DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
LATENT_PLACES_AT_ONCE = 64 * 64  # one picture of 512 px in an 8x autoencoder


@dataclass(frozen=True)
class Wires:
    """What is wired to a training node.

    Attributes:
        model: MODEL; it is left as it is.
        socket: name of the CONDITIONING's input, for errors.
        sentence: what that input holds.
        photographs: what is to be learned, scaled as the model wants it.
    """

    model: comfy_host.Model
    socket: str
    sentence: Sentence
    photographs: Photographs


def read_wires(
    model: comfy_host.Model,
    socket: str,
    conditioning: comfy_host.Conditioning,
    image: comfy_host.Latent,
    train_at: int = 0,
) -> Wires:
    """Read and check what is wired to a training node.

    ``train_at``: see ``read_photographs``, its ``side``.

    Raises:
        BadInputError: something cannot be used; the message says what to do.
    """
    distilled = comfy_host.distilled_steps(model)
    if distilled:
        comfy_host.LOGGER.warning(
            "'model' is distilled to few steps (%s), and training wears that off: sample the edit "
            "with the steps and the cfg of the model that it was distilled from, or lower the "
            "strength of what is learned (Imagic Fine-tune Strength)",
            distilled,
        )
    sentence = comfy_host.read_sentence(socket, conditioning)
    photographs = comfy_host.read_photographs(model, image, train_at)
    return Wires(model, socket, sentence, photographs)


@dataclass(frozen=True)
class Run:
    """How to train: the stage's settings, and how to compute.

    Attributes:
        settings: how long and how hard; as many draws at once as fit a picture of 512 px.
        training_dtype: one of ``DTYPES``.
        save_memory: one of ``SAVE_MEMORY``.
        keep: whether what is learned is kept for the next run with the same inputs.
        what: what the stage learns, which tells it from another stage with the same settings.
    """

    settings: Settings
    training_dtype: str
    save_memory: str
    keep: bool = False
    what: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Session:
    """What a stage works on, on the model's device.

    Attributes:
        denoiser: the model, with ``changes`` applied to its weights.
        photographs: what is to be learned.
        embedding: of the sentence that is wired.
        origin: e_tgt, where that sentence was learned by stage A; else None.
        changes: of the weights, by state dict key; empty where the model stays as it is.
        settings: how long and how hard to train.
        on_step: reports a step, and raises when the user cancels.
        keeper: keeps the training, and goes on with one that was kept.
    """

    denoiser: comfy_host.HostDenoiser
    photographs: Photographs
    embedding: Embedding
    origin: Embedding | None
    changes: comfy_host.Changes
    settings: Settings
    on_step: Callable[[Progress], None]
    keeper: Keeper


def train(
    wires: Wires,
    run: Run,
    stage: Callable[[Session], Callable[[], Learned]],
    new_changes: Callable[[], comfy_host.Changes] = dict,
) -> Learned:
    """Run a stage on what is wired, or give what it learned of the same before.

    Args:
        wires: from ``read_wires``.
        run: how to train.
        stage: trains, and returns what gives what it learned once the model is as it was; called
            again if the memory did not suffice, to go on from the last step that was kept.
        new_changes: makes the untrained changes of the weights, for each call of ``stage``.

    Raises:
        BadInputError: the conditioning does not fit the model, or the model cannot be trained.
        OutOfMemoryError: the memory does not or cannot suffice even in the smallest way.
    """
    at_once = max(1, LATENT_PLACES_AT_ONCE // wires.photographs.x0[0, 0].numel())
    settings = replace(run.settings, micro_batch=min(run.settings.batch_size, at_once))

    shelf = shelf_of(wires, replace(run, settings=settings))
    known = shelf and shelf.result()
    if known:
        told = f"learned before, in {len(known.losses)} steps"
        comfy_host.LOGGER.info(told)
        say(told)
        return known

    device, its_ways = wires.model.load_device, ways(run.save_memory, settings.micro_batch)

    # A function of its own, so that nothing of a failed attempt lives on into the next.
    def attempt(way: Way) -> Learned:
        changes = new_changes()
        least = at_least(wires.model, changes, way)
        told = f"{settings.steps} steps of {settings.batch_size} evaluations, forward and back, "
        say(f"{told}in at least {least / GB:.1f} GB; {memory(device)}")
        with (
            comfy_host.trainable(
                wires.model,
                wires.photographs,
                wires.sentence,
                changes,
                compute_dtype=DTYPES[run.training_dtype],
                recompute=way.recompute,
                in_main_memory=way.in_main_memory,
            ) as (denoiser, photographs),
            keeping(shelf, denoiser, changes) as keeper,
        ):
            try:
                needed = check_free(
                    device, denoiser.draw_bytes, changes, way, relative=settings.relative
                )
            except TightError:
                if way != its_ways[-1]:
                    raise
                needed = None  # only a guess: better to try
            more = "" if needed is None else f", {needed / GB:.1f} GB beside the weights"
            say(f"{told}{way}{more}; {memory(device)}")
            on, origin = photographs.x0.device, wires.sentence.origin
            embedding = comfy_host.to_device(wires.sentence.embedding, on)
            origin = origin and comfy_host.to_device(origin, on)
            reporter = Reporter(device, settings.steps, drawn_latent(wires.model))
            own = replace(settings, micro_batch=way.at_once)
            session = Session(
                denoiser, photographs, embedding, origin, changes, own, reporter, keeper
            )
            done = stage(session)
        return done()

    for way in its_ways:
        try:
            learned = attempt(way)
            if shelf:
                shelf.put(learned)
            return learned
        except comfy_host.DoesNotFitError as error:
            text = wires.sentence.embedding.named().items()
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in text)
            raise BadInputError(
                f"the model cannot take '{wires.socket}' with {shapes} beside the latent "
                f"{tuple(wires.photographs.x0.shape)}; connect the text encoder and the VAE that "
                f"belong to this model. The model said: {error}"
            ) from error
        except OutOfMemoryError:
            # Of a device that cannot hold all of it; another way may leave a part elsewhere.
            if way == its_ways[-1]:
                raise
        except (torch.OutOfMemoryError, TightError) as error:
            comfy_host.LOGGER.info("not enough memory for %s: %s", way, str(error).split("\n")[0])
        # Not before the exception is gone, whose traceback holds all that the attempt had made.
        comfy.model_management.soft_empty_cache()
    raise OutOfMemoryError(
        "not enough memory. Use a smaller picture, method 'lora' with a lower rank, "
        "save_memory 'on', or a model in a smaller number format."
    )


def shelf_of(wires: Wires, run: Run) -> Shelf | None:
    """Where what is learned of this is kept; None where it is not, or could not be found again."""
    if not run.keep:
        return None
    # Not how the memory is saved, nor what the sentence was: both leave the result as it is.
    sentence = replace(wires.sentence, origin=None)
    inputs = (sentence, wires.photographs, run.settings, run.training_dtype, run.what)
    try:
        return Shelf(comfy_host.fingerprint(wires.model, sources(), *inputs))
    except comfy_host.UntellableError as error:
        comfy_host.LOGGER.info(
            "what is learned is not kept: there is something around 'model' or in '%s' that "
            "cannot be told from another of its kind (%s)",
            wires.socket,
            error,
        )
        return None


@cache
def sources() -> str:
    """Hash of the code that trains: what another version learned is not this one's."""
    root = Path(__file__).parent.parent
    files = [*root.glob("imagic_core/*.py"), *root.glob("nodes/comfy_host/*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()
