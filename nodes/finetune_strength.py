"""Turning the fine-tuning down, part by part, without training again."""

from __future__ import annotations

from comfy_api.latest import io

from . import comfy_host, schema
from .checks import checked
from .errors import named

NAME = "Imagic Fine-tune Strength"
PARTS = {
    "encoder": "The encoder of a U-Net, the first third of a transformer's blocks.",
    "middle": "The middle of a U-Net, the second third of a transformer's blocks.",
    "decoder": "The decoder of a U-Net, the last third of a transformer's blocks.",
}


class ImagicFinetuneStrength(io.ComfyNode):
    """Loosens a picture that was learned too well."""

    @classmethod
    @schema.found_by("lora strength", "lora block weight", "edit strength")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicFinetuneStrength",
            display_name=NAME,
            category=schema.TOOLS,
            description="Applies what Imagic Fine-tune Model learned at a strength of its own for "
            "each part of the network. If no eta brings the edit, lower these: nothing is trained "
            "again.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model as loaded. Of the fine-tuned one the strength is replaced.",
                ),
                io.LoraModel.Input("lora", tooltip="From Imagic Fine-tune Model."),
                *(
                    io.Float.Input(
                        part,
                        default=1.0,
                        min=-1.0,
                        max=2.0,
                        step=0.05,
                        tooltip=f"{what} 1 is as it was learned, 0 is the model as loaded.",
                    )
                    for part, what in PARTS.items()
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler."),
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        model: comfy_host.Model,
        lora: comfy_host.Lora,
        encoder: float,
        middle: float,
        decoder: float,
    ) -> io.NodeOutput:
        """Add each part of ``lora`` to a copy of ``model`` at its own strength, once."""
        comfy_host.check_wired(model, lora)
        tuned, parts = comfy_host.without_lora(model, lora), comfy_host.lora_by_part(model, lora)
        for part, strength in zip(PARTS, (encoder, middle, decoder), strict=True):
            tuned = comfy_host.apply_lora(tuned, parts[part], strength)
        return io.NodeOutput(tuned)
