"""Stage C for several eta at once."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..imagic_core.interpolate import interpolate
from . import comfy_host, schema
from .checks import checked
from .errors import named
from .sweep import eta_range

NAME = "Imagic Eta Sweep"


class ImagicEtaSweep(io.ComfyNode):
    """Equation 4 for a range of eta."""

    @classmethod
    @schema.found_by("xy plot", "compare", "range", "grid", "figure 7")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicEtaSweep",
            display_name=NAME,
            category=schema.TOOLS,
            description="Conditionings for a range of eta. What they are wired to runs once for "
            "each: one KSampler with one seed draws the whole range.",
            inputs=[
                io.Conditioning.Input(
                    "target", tooltip="Your sentence, as wired to Imagic Optimize Embedding."
                ),
                io.Conditioning.Input("optimized", tooltip="From Imagic Optimize Embedding."),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=-1.0,
                    max=2.0,
                    step=0.01,
                    tooltip="The first eta. 0 reconstructs your photograph.",
                ),
                io.Float.Input(
                    "stop",
                    default=1.0,
                    min=-1.0,
                    max=2.0,
                    step=0.01,
                    tooltip="The last eta. 1 follows the sentence alone.",
                ),
                io.Int.Input(
                    "count",
                    default=6,
                    min=1,
                    max=64,
                    tooltip="How many eta from start to stop. Each is one sampling.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="For the positive input of KSampler, which then runs once for each.",
                ),
                io.Float.Output(
                    display_name="etas",
                    is_output_list=True,
                    tooltip="For Imagic Contact Sheet and Imagic Score Edits.",
                ),
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        target: comfy_host.Conditioning,
        optimized: comfy_host.Conditioning,
        start: float,
        stop: float,
        count: int,
    ) -> io.NodeOutput:
        """Interpolate at each eta."""
        etas = eta_range(start, stop, count)
        conditionings = [
            comfy_host.combine(target, optimized, partial(interpolate, eta=eta)) for eta in etas
        ]
        return io.NodeOutput(conditionings, etas)
