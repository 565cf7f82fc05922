"""Stage B."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..imagic_core.finetune import METHODS, PAPER, finetune_model
from ..imagic_core.fit import Settings
from . import comfy_host, run
from .progress import Reporter

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
            method = "full"
        comfy_host.check_trainable(NAME, model)
        text = comfy_host.read_text(NAME, "optimized", optimized)
        photographs, mask = comfy_host.read_image(NAME, model, image)

        own = Settings(steps, learning_rate, seed, batch_size)
        chosen = run.settings(recipe, PAPER, own, photographs)

        def train(recompute: bool) -> Any:
            changes = comfy_host.new_changes(model, method, rank, alpha, seed)
            with comfy_host.training(
                model,
                photographs,
                text,
                changes,
                compute_dtype=run.DTYPES[training_dtype],
                save_memory=recompute,
            ) as (denoiser, x0):
                e_opt = comfy_host.to_device(text.embedding, x0.device)
                run.check_fits(NAME, "optimized", denoiser, x0, e_opt)
                losses = finetune_model(
                    denoiser,
                    x0,
                    e_opt,
                    changes,
                    chosen,
                    Reporter(model, chosen.steps),
                    None if mask is None else mask.to(x0.device),
                )
            return comfy_host.changes_to_lora(changes), losses

        lora, losses = run.within_memory(NAME, save_memory, train)
        return io.NodeOutput(comfy_host.apply_lora(model, lora), lora, {"loss": losses})
