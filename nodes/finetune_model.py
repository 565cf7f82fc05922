"""Stage B."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..imagic_core.finetune import METHODS, PAPER, finetune_model
from . import comfy_host, run

NAME = "Imagic Fine-tune Model"


class ImagicFinetuneModel(io.ComfyNode):
    """Stage B of Imagic, section 3.2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicFinetuneModel",
            display_name=NAME,
            category=run.CATEGORY,
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
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="lora",
                    tooltip="Which weights move. lora: a small change to every layer, least "
                    "memory. attention: the attention layers. full: everything, as in the paper. "
                    "Choosing one sets the steps and the learning_rate that suit it.",
                ),
                *run.common_inputs(METHODS["lora"], "the model"),
                *run.optional_inputs(PAPER),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="lora only: width of the change. Higher can learn more, and takes "
                    "more memory and disk.",
                ),
                io.Float.Input(
                    "alpha",
                    default=16.0,
                    min=0.01,
                    max=1024.0,
                    step=0.01,
                    optional=True,
                    tooltip="lora only: the change counts alpha / rank times.",
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
    def execute(
        cls,
        model: Any,
        optimized: Any,
        image: dict[str, Any],
        method: str,
        steps: int,
        learning_rate: float,
        seed: int,
        recipe: str = "as set",
        batch_size: int = 4,
        training_dtype: str = "auto",
        save_memory: str = "auto",
        rank: int = 16,
        alpha: float = 16.0,
    ) -> io.NodeOutput:
        """Fine-tune a copy of ``model`` on ``image`` under ``optimized``."""
        if recipe == "paper":
            method, settings = "full", replace(PAPER, seed=seed)
        else:
            settings = replace(
                METHODS[method],
                steps=steps,
                learning_rate=learning_rate,
                seed=seed,
                batch_size=batch_size,
            )

        def stage(t: run.Training) -> tuple[dict[str, Tensor], list[float]]:
            losses = finetune_model(
                t.denoiser, t.x0, t.embedding, t.changes, t.settings, t.on_step, t.mask
            )
            return comfy_host.changes_to_lora(t.changes), losses

        lora, losses = run.train(
            NAME,
            "optimized",
            model,
            optimized,
            image,
            stage,
            lambda: comfy_host.new_changes(model, method, rank, alpha, seed),
            settings=settings,
            training_dtype=training_dtype,
            save_memory=save_memory,
        )
        return io.NodeOutput(comfy_host.apply_lora(model, lora), lora, {"loss": losses})
