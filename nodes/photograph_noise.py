"""Drawing from the photograph's own noise."""

from __future__ import annotations

from comfy_api.latest import io

from . import comfy_host, schema
from .checks import checked
from .errors import named

NAME = "Imagic Photograph's Noise"


class ImagicPhotographNoise(io.ComfyNode):
    """Keeps what the sentence does not name where it is."""

    @classmethod
    @schema.found_by(
        "inversion", "invert", "unsampler", "ddim inversion", "keep background", "noise"
    )
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicPhotographNoise",
            display_name=NAME,
            category=schema.TOOLS,
            description="The fine-tuned model, begun from noise that knows your photograph: what "
            "your sentence does not name stays where it is. Wire it between Imagic Fine-tune Model "
            "and KSampler, and draw with a sampler that adds no noise, as euler or dpmpp_2m.",
            inputs=[
                io.Model.Input("model", tooltip="From Imagic Fine-tune Model."),
                io.Model.Input(
                    "as_loaded",
                    tooltip="The model that stage A used: the noise is the one from which it would "
                    "have drawn your photograph.",
                ),
                io.Conditioning.Input("optimized", tooltip="From Imagic Optimize Embedding."),
                io.Latent.Input(
                    "image", tooltip="The photograph, as wired to Imagic Optimize Embedding."
                ),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the noise is the photograph's; the rest is the seed's. At "
                    "1 every seed draws the same, and some edits do not come; at 0 all is "
                    "the seed's.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="For KSampler, at a denoise of 1 and the size of the photograph.",
                )
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        model: comfy_host.Model,
        as_loaded: comfy_host.Model,
        optimized: comfy_host.Conditioning,
        image: comfy_host.Latent,
        share: float,
    ) -> io.NodeOutput:
        """Follow the flow from ``image`` back to noise, and let ``model`` begin there."""
        comfy_host.read_photographs(as_loaded, image)
        comfy_host.read_sentence("optimized", optimized)
        noise = comfy_host.noise_of(as_loaded, optimized, image)
        return io.NodeOutput(comfy_host.beginning_with(model, noise, share))
