"""Stage A."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..imagic_core.embedding import DEFAULT, PAPER, optimize_embedding
from . import comfy_host, run

NAME = "Imagic Optimize Embedding"


class ImagicOptimizeEmbedding(io.ComfyNode):
    """Stage A of Imagic, section 3.2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicOptimizeEmbedding",
            display_name=NAME,
            category=run.CATEGORY,
            description="Imagic, stage A: finds a text embedding near your sentence under which "
            "the model draws your photograph. The model is not changed.",
            inputs=[
                io.Model.Input("model", tooltip="The model to edit with, as loaded."),
                io.Conditioning.Input(
                    "target",
                    tooltip="Your sentence: what the picture shall show. From CLIP Text Encode.",
                ),
                io.Latent.Input(
                    "image",
                    tooltip="Your photograph. From VAE Encode. A batch is learned as several "
                    "photographs; a noise mask says where to be faithful.",
                ),
                *run.common_inputs(DEFAULT, "the text embedding"),
                *run.optional_inputs(PAPER),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="optimized", tooltip="The embedding that draws your photograph."
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
        target: Any,
        image: dict[str, Any],
        steps: int,
        learning_rate: float,
        seed: int,
        recipe: str = "as set",
        batch_size: int = 4,
        training_dtype: str = "auto",
        save_memory: str = "auto",
    ) -> io.NodeOutput:
        """Optimise the embedding of ``target`` towards ``image``."""
        if recipe == "paper":
            settings = replace(PAPER, seed=seed)
        else:
            settings = replace(
                DEFAULT,
                steps=steps,
                learning_rate=learning_rate,
                seed=seed,
                batch_size=batch_size,
            )

        def stage(t: run.Training) -> tuple[list[list[Any]], list[float]]:
            e_opt, losses = optimize_embedding(
                t.denoiser, t.x0, t.embedding, t.settings, t.on_step, t.mask
            )
            device = t.text.embedding.tokens.device
            return t.text.with_embedding(comfy_host.to_device(e_opt, device)), losses

        optimized, losses = run.train(
            NAME,
            "target",
            model,
            target,
            image,
            stage,
            settings=settings,
            training_dtype=training_dtype,
            save_memory=save_memory,
        )
        return io.NodeOutput(optimized, {"loss": losses})
