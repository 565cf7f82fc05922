"""Stage C, by interpolation."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..imagic_core.interpolate import interpolate
from . import comfy_host, schema
from .checks import checked
from .errors import named

NAME = "Imagic Interpolate Conditioning"


class ImagicInterpolateConditioning(io.ComfyNode):
    """Stage C of Imagic, equation 4."""

    @classmethod
    @schema.found_by(*schema.EDITING, "mix conditioning", "blend prompts", "eta")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicInterpolateConditioning",
            display_name=NAME,
            category=schema.CATEGORY,
            description="Imagic, stage C: goes from your photograph (eta 0) towards your sentence "
            "(eta 1). Wire the result to KSampler, with the fine-tuned model.",
            inputs=[
                io.Conditioning.Input(
                    "target", tooltip="Your sentence, as wired to Imagic Optimize Embedding."
                ),
                io.Conditioning.Input("optimized", tooltip="From Imagic Optimize Embedding."),
                io.Float.Input(
                    "eta",
                    default=0.9,
                    min=-1.0,
                    max=2.0,
                    step=0.01,
                    tooltip="0 reconstructs your photograph, 1 follows the sentence alone; 0.8 to "
                    "1 is usually best. Too little happens: raise it. The picture is lost: "
                    "lower it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="For the positive input of KSampler."
                )
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls, target: comfy_host.Conditioning, optimized: comfy_host.Conditioning, eta: float
    ) -> io.NodeOutput:
        """Interpolate between the two conditionings."""
        return io.NodeOutput(comfy_host.combine(target, optimized, partial(interpolate, eta=eta)))
