"""Stage A."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..imagic_core.embedding import DEFAULT, FAST, PAPER, optimize_embedding
from . import comfy_host, schema
from .checks import checked
from .errors import named
from .kept import Learned
from .train import Run, Session, read_wires, train

NAME = "Imagic Optimize Embedding"


class ImagicOptimizeEmbedding(io.ComfyNode):
    """Stage A of Imagic, section 3.2."""

    @classmethod
    @schema.found_by(*schema.EDITING)
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicOptimizeEmbedding",
            display_name=NAME,
            category=schema.CATEGORY,
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
                *schema.training_inputs(DEFAULT, "the text embedding", "token"),
                *schema.optional_training_inputs(DEFAULT, FAST, PAPER),
                *schema.advanced(schema.keep_input(), schema.size_input()),
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
    @named(NAME)
    @checked()
    def execute(
        cls,
        model: comfy_host.Model,
        target: comfy_host.Conditioning,
        image: comfy_host.Latent,
        steps: int,
        learning_rate: float,
        seed: int,
        recipe: str = "as set",
        batch_size: int = DEFAULT.batch_size,
        training_dtype: str = "auto",
        save_memory: str = "auto",
        keep: bool = True,
        train_at: int = 0,
    ) -> io.NodeOutput:
        """Optimise the embedding of ``target`` towards ``image``."""
        settings = replace(DEFAULT, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
        settings = replace({"fast": FAST, "paper": PAPER}.get(recipe, settings), seed=seed)
        wires = read_wires(model, "target", target, image, train_at)
        wires = replace(wires, sentence=comfy_host.read_by(model, wires.sentence))
        device = wires.sentence.embedding.tokens.device

        def stage(s: Session) -> Callable[[], Learned]:
            e_opt, losses = optimize_embedding(
                s.denoiser, s.photographs, s.embedding, s.settings, s.on_step, s.keeper
            )
            learned = comfy_host.to_device(e_opt, torch.device("cpu")).named()
            return lambda: Learned(learned, losses)

        run = Run(settings, training_dtype, save_memory, keep, ("the text embedding",))
        learned = train(wires, run, stage)
        e_tgt = wires.sentence.embedding
        e_opt = e_tgt.with_tensors(learned.tensors[name].to(device) for name in e_tgt.named())
        optimized = comfy_host.to_conditioning(wires.sentence.with_embedding(e_opt))
        return io.NodeOutput(optimized, {"loss": learned.losses})
