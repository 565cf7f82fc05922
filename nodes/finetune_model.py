"""Stage B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from comfy_api.latest import io

from ..imagic_core.finetune import (
    FAST,
    FAST_METHOD,
    METHODS,
    PAPER,
    PAPER_METHOD,
    finetune_model,
)
from ..imagic_core.left import LITTLE, apart
from . import comfy_host, schema
from .checks import checked
from .errors import named
from .kept import Learned
from .progress import say
from .train import Run, Session, read_wires, train

NAME = "Imagic Fine-tune Model"
METHOD = next(iter(METHODS))


class ImagicFinetuneModel(io.ComfyNode):
    """Stage B of Imagic, section 3.2."""

    @classmethod
    @schema.found_by(*schema.EDITING, "lora", "unet")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        method = io.Combo.Input(
            "method",
            options=list(METHODS),
            default=METHOD,
            tooltip="Which weights move. lora: a small change to every layer, least memory. "
            "attention: the attention layers. full: everything, as in the paper. Choosing one "
            "sets the steps and the learning_rate that suit it.",
        )
        # Read by web/method_defaults.js.
        method.extra_dict["method_defaults"] = {
            name: {"steps": own.steps, "learning_rate": own.learning_rate}
            for name, own in METHODS.items()
        }
        return io.Schema(
            node_id="ImagicFinetuneModel",
            display_name=NAME,
            category=schema.CATEGORY,
            description="Imagic, stage B: teaches the model your photograph under the optimized "
            "embedding. Returns a changed copy; the model that comes in stays as it is.",
            inputs=[
                io.Model.Input("model", tooltip="The model that stage A used."),
                io.Conditioning.Input(
                    "optimized", tooltip="From Imagic Optimize Embedding. It is held fixed."
                ),
                io.Latent.Input(
                    "image", tooltip="The photograph, as wired to Imagic Optimize Embedding."
                ),
                method,
                *schema.training_inputs(METHODS[METHOD], "the model", "layer"),
                *schema.optional_training_inputs(METHODS[METHOD], FAST, PAPER),
                *schema.advanced(
                    io.Int.Input(
                        "rank",
                        default=16,
                        min=1,
                        max=256,
                        optional=True,
                        tooltip="lora only: width of the change. Higher can learn more, and takes "
                        "more memory and disk.",
                    ),
                    io.LoraModel.Input(
                        "lora",
                        optional=True,
                        tooltip="What Imagic Fine-tune Model learned before, perhaps from Imagic "
                        "Load Edit: training goes on from there, by the method and the rank of "
                        "that. In a model that has it already it is not added again.",
                    ),
                    schema.keep_input(),
                    schema.size_input(),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model that knows your photograph."
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="What was learned, for Save LoRA Weights. For full and attention: the "
                    "weight differences.",
                ),
                io.LossMap.Output(
                    display_name="loss", tooltip="Loss of each step, for Plot Loss Graph."
                ),
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        model: comfy_host.Model,
        optimized: comfy_host.Conditioning,
        image: comfy_host.Latent,
        method: str,
        steps: int,
        learning_rate: float,
        seed: int,
        recipe: str = "as set",
        batch_size: int = METHODS[METHOD].batch_size,
        training_dtype: str = "auto",
        save_memory: str = "auto",
        rank: int = 16,
        lora: comfy_host.Lora | None = None,
        keep: bool = True,
        train_at: int = 0,
    ) -> io.NodeOutput:
        """Fine-tune a copy of ``model`` on ``image`` under ``optimized``."""
        if lora is not None:
            model = comfy_host.without_lora(model, lora)
        settings = replace(
            METHODS[method], steps=steps, learning_rate=learning_rate, batch_size=batch_size
        )
        recipes = {"fast": (FAST_METHOD, FAST), "paper": (PAPER_METHOD, PAPER)}
        method, settings = recipes.get(recipe, (method, settings))
        what = (method, rank) if method == "lora" else (method,)
        run = Run(replace(settings, seed=seed), training_dtype, save_memory, keep, (*what, lora))

        def stage(s: Session) -> Callable[[], Learned]:
            as_loaded = _apart(s) if lora is None else 0.0
            losses = finetune_model(
                s.denoiser, s.photographs, s.embedding, s.changes, s.settings, s.on_step, s.keeper
            )
            left = _apart(s) / as_loaded if as_loaded else None
            return lambda: Learned(comfy_host.changes_to_lora(s.changes), losses, left)

        learned = train(
            read_wires(model, "optimized", optimized, image, train_at),
            run,
            stage,
            lambda: comfy_host.new_changes(model, method, rank, seed, lora),
        )
        if learned.left is not None:
            _tell(learned.left)
        found = dict(learned.tensors)
        return io.NodeOutput(comfy_host.apply_lora(model, found), found, {"loss": learned.losses})


def _apart(s: Session) -> float:
    """How far apart the model draws what was learned and the target; 0 where that is not known."""
    if s.origin is None:
        return 0.0
    how = {"seed": s.settings.seed, "at_once": s.settings.micro_batch}
    return apart(s.denoiser, s.photographs, s.embedding, s.origin, **how)


def _tell(left: float) -> None:
    """Say on the node what is left of the sentence, and warn where that is little."""
    line = f"{left:.0%} of what your sentence changes is left"
    if left < LITTLE:
        line += (
            ": the photograph was learned firmly. If no eta shows the edit, lower learning_rate or "
            "steps, or turn it down with Imagic Fine-tune Strength"
        )
        comfy_host.LOGGER.warning("%s: %s", NAME, line)
    say(line)
