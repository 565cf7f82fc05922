"""Stage C, by projection."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..imagic_core.interpolate import project
from . import comfy_host, schema
from .checks import checked
from .errors import named

NAME = "Imagic Project Conditioning"


class ImagicProjectConditioning(io.ComfyNode):
    """Identity and edit strength apart."""

    @classmethod
    @schema.found_by("mix conditioning", "blend prompts", "edit strength", "identity", "forgedit")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicProjectConditioning",
            display_name=NAME,
            category=schema.TOOLS,
            description="In place of Imagic Interpolate Conditioning: sets how much of your "
            "photograph and how much of the edit there is, each by itself.",
            inputs=[
                io.Conditioning.Input(
                    "target", tooltip="Your sentence, as wired to Imagic Optimize Embedding."
                ),
                io.Conditioning.Input("optimized", tooltip="From Imagic Optimize Embedding."),
                io.Float.Input(
                    "identity",
                    default=1.0,
                    min=-1.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Strength of your photograph. 1 is as it was learned.",
                ),
                io.Float.Input(
                    "edit",
                    default=1.0,
                    min=-1.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Strength of what your sentence adds. 0 reconstructs your photograph.",
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
        cls,
        target: comfy_host.Conditioning,
        optimized: comfy_host.Conditioning,
        identity: float,
        edit: float,
    ) -> io.NodeOutput:
        """Add the part of ``target`` that is orthogonal to ``optimized``."""
        rule = partial(project, identity=identity, edit=edit)
        return io.NodeOutput(comfy_host.combine(target, optimized, rule))
