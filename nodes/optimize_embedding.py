"""Stage A."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..imagic_core.embedding import DEFAULT, PAPER, optimize_embedding
from ..imagic_core.fit import Settings
from . import comfy_host, run
from .progress import Reporter

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
        comfy_host.check_trainable(NAME, model)
        text = comfy_host.read_text(NAME, "target", target)
        photographs, mask = comfy_host.read_image(NAME, model, image)

        own = Settings(steps, learning_rate, seed, batch_size)
        chosen = run.settings(recipe, PAPER, own, photographs)

        def train(recompute: bool) -> Any:
            with comfy_host.training(
                model,
                photographs,
                text,
                compute_dtype=run.DTYPES[training_dtype],
                save_memory=recompute,
            ) as (denoiser, x0):
                e_tgt = comfy_host.to_device(text.embedding, x0.device)
                run.check_fits(NAME, "target", denoiser, x0, e_tgt)
                e_opt, losses = optimize_embedding(
                    denoiser,
                    x0,
                    e_tgt,
                    chosen,
                    Reporter(model, chosen.steps),
                    None if mask is None else mask.to(x0.device),
                )
                return comfy_host.to_device(e_opt, text.embedding.tokens.device), losses

        optimized, losses = run.within_memory(NAME, save_memory, train)
        return io.NodeOutput(text.with_embedding(optimized), {"loss": losses})
