"""What the nodes' faces share: where they are listed and found, the widgets of both trainings."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from comfy_api.latest import io

from ..imagic_core.fit import Settings
from .memory import SAVE_MEMORY
from .train import DTYPES, RECIPES

Define = Callable[[type[io.ComfyNode]], io.Schema]

CATEGORY = "Imagic"
TOOLS = "Imagic/tools"
BASELINES = "Imagic/baselines"

EDITING = (
    "edit photo", "edit image by text", "image editing", "photo editing", "prompt editing",
    "dreambooth", "textual inversion", "text embedding", "train", "fine-tune", "photograph",
    "照片编辑", "图像编辑", "训练", "照片編輯", "影像編輯", "訓練",
    "写真編集", "画像編集", "学習", "사진 편집", "이미지 편집", "학습",
)  # fmt: skip
"""What someone types who looks for what the three stages do together, in five languages."""


def found_by(*words: str) -> Callable[[Define], Define]:
    """Let the host's search find a node by ``words``, too; around its ``define_schema``."""

    def decorate(define: Define) -> Define:
        @wraps(define)
        def defined(cls: type[io.ComfyNode]) -> io.Schema:
            schema = define(cls)
            # Older hosts search names alone.
            if hasattr(schema, "search_aliases"):
                schema.search_aliases = list(words)
            return schema

        return defined

    return decorate


def advanced(*inputs: io.Input) -> tuple[io.Input, ...]:
    """Let the host hide inputs until the user asks for its advanced ones."""
    for one in inputs:
        # The constructors of older hosts do not know the word; their front end does.
        one.extra_dict["advanced"] = True
    return inputs


def training_inputs(default: Settings, what: str, moved: str) -> list[io.Input]:
    """Inputs steps, learning_rate and seed, with the defaults of the stage.

    ``what`` is trained, and a step moves each that is ``moved``.
    """
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
            tooltip=f"How far a step moves each {moved}, as a share of its own size: 0.01 is a "
            "hundredth. It falls evenly to 0 at the last step. 0 changes nothing.",
        ),
        *advanced(seed_input("the noise and the timesteps")),
    ]


def seed_input(of: str) -> io.Input:
    """Input seed of a training."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**64 - 1,
        # Not randomised after each run: another seed would train again for another eta.
        control_after_generate=False,
        tooltip=f"Seed of {of}. Same seed and inputs, same result.",
    )


def keep_input() -> io.Input:
    """Input keep, of both trainings."""
    return io.Boolean.Input(
        "keep",
        default=True,
        optional=True,
        tooltip="Keep what is learned in ComfyUI's user folder: a training that was stopped goes "
        "on from there, and one that was done is not done again, also after a restart. Another "
        "number of steps starts anew, for the learning_rate falls over all of them.",
    )


def size_input() -> io.Input:
    """Input train_at, of both trainings; the last one, since saved workflows go by the order."""
    return io.Int.Input(
        "train_at",
        default=0,
        min=0,
        max=16384,
        step=64,
        optional=True,
        tooltip="Learn from the photograph made smaller, to as many pixels as a square of this "
        "side has; 0: as wired. Half the side is a quarter of the work, for models that draw at "
        "both sizes. Small things are learned less well. Give both trainings the same.",
    )


def optional_training_inputs(
    default: Settings, fast: Settings, paper: Settings
) -> tuple[io.Input, ...]:
    """Inputs that a user may leave alone; ``fast`` and ``paper`` are the stage's recipes."""
    return advanced(
        io.Combo.Input(
            "recipe",
            options=list(RECIPES),
            default=RECIPES[0],
            optional=True,
            tooltip="fast: less than a third of the work, for a first look. "
            f"paper: as the paper trains Stable Diffusion, {paper.steps} steps of Adam at "
            f"{paper.learning_rate:g}, one draw each, and of the model all weights. With both, "
            "what is set here is ignored.",
        ),
        io.Int.Input(
            "batch_size",
            default=default.batch_size,
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
            options=list(SAVE_MEMORY),
            default="auto",
            optional=True,
            tooltip="Recompute the model's blocks in the backward pass instead of keeping them: "
            "less memory, about a third slower, same result. auto does so when too little is free.",
        ),
    )
