"""Text2LIVE, with which the paper compares."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..imagic_core.text2live import SMALLEST, Layer, Settings, Told, paint
from . import comfy_host, schema
from .checks import checked
from .errors import BadInputError, OutOfMemoryError, named
from .pictures import to_pil
from .progress import Reporter

NAME = "Imagic Text2LIVE (baseline)"
DEFAULT = Settings()


class ImagicText2Live(io.ComfyNode):
    """Text2LIVE (Bar-Tal et al., ECCV 2022) on one photograph."""

    @classmethod
    @schema.found_by(
        "text2live", "baseline", "recolor", "recolour", "texture", "edit layer", "clip",
        "重新着色", "纹理", "重新著色", "紋理", "色を変える", "質感", "색 바꾸기", "질감",
    )  # fmt: skip
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicText2Live",
            display_name=NAME,
            category=schema.BASELINES,
            description="Text2LIVE, which the paper compares with: a small network learns from "
            "your photograph and CLIP alone to paint a layer over it. It changes colours and "
            "textures, and moves nothing.",
            inputs=[
                io.Image.Input("image", tooltip="Your photograph. From Load Image."),
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision."),
                io.Clip.Input("clip", tooltip="The text encoder of the same CLIP, from Load CLIP."),
                _sentence(
                    "text",
                    "Your sentence: what the picture shall show.",
                ),
                _sentence(
                    "source_text",
                    "What the photograph shows, in the same words but for what changes.",
                ),
                _sentence(
                    "layer_text",
                    "What is painted, by itself: such as a red dog.",
                ),
                _sentence(
                    "region_text",
                    "What of the photograph is painted over, such as a dog: training "
                    "begins where CLIP sees it. Empty: it finds the place by itself, and tints "
                    "more of the rest.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULT.steps,
                    min=1,
                    max=100_000,
                    tooltip="Training steps of the painting network.",
                ),
                *schema.advanced(
                    io.Float.Input(
                        "learning_rate",
                        default=DEFAULT.learning_rate,
                        min=0.0,
                        max=1.0,
                        step=1e-5,
                        round=False,
                        tooltip="Of Adam. It falls evenly to 0 at the last step.",
                    ),
                    io.Int.Input(
                        "views",
                        default=DEFAULT.views,
                        min=1,
                        max=64,
                        tooltip="How many crops of the result CLIP looks at in each step. More is "
                        "steadier, slower, and takes no more memory.",
                    ),
                    schema.seed_input("the network and the crops"),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The layer over your photograph."),
                io.Image.Output(display_name="layer", tooltip="The colours of the layer."),
                io.Mask.Output(
                    display_name="opacity", tooltip="Where the layer covers the photograph."
                ),
                io.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        image: Tensor,
        clip_vision: comfy_host.ClipVision,
        clip: comfy_host.Clip,
        text: str,
        source_text: str,
        layer_text: str,
        region_text: str,
        steps: int,
        learning_rate: float = DEFAULT.learning_rate,
        views: int = DEFAULT.views,
        seed: int = 0,
    ) -> io.NodeOutput:
        """Train, and paint."""
        _check(image, {"text": text, "source_text": source_text, "layer_text": layer_text})
        settings = Settings(steps, learning_rate, seed, views)
        said = [text, f"{layer_text.strip()} over a green screen", source_text]
        said += [region_text] if region_text.strip() else []
        sentences = comfy_host.sentences_of_pair(clip_vision, clip, said)
        try:
            layer, whole, losses = _painted(image, clip_vision, sentences, settings)
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(
                f"not enough memory for a picture of {image.shape[2]} x {image.shape[1]}. Make it "
                "smaller with Scale Image to Total Pixels."
            ) from None
        colour, opacity = (t.movedim(1, -1).cpu() for t in layer)
        return io.NodeOutput(whole.movedim(1, -1).cpu(), colour, opacity[..., 0], {"loss": losses})


def _sentence(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, multiline=True, default="", tooltip=tooltip)


def _check(image: Tensor, texts: dict[str, str]) -> None:
    count, height, width = image.shape[:3]
    if count > 1:
        raise BadInputError(
            f"'image' holds {count} pictures, and a layer is painted for one; connect one "
            "photograph, or choose one with Image From Batch."
        )
    if min(height, width) < 2 * SMALLEST:
        raise BadInputError(
            f"'image' is {width} x {height}; connect a photograph of at least {2 * SMALLEST} x "
            f"{2 * SMALLEST}."
        )
    if not torch.isfinite(image).all():
        raise BadInputError("'image' has NaN or infinity; connect the photograph as it was loaded.")
    for name, said in texts.items():
        if not said.strip():
            raise BadInputError(f"'{name}' is empty; say in it what its tooltip asks for.")
    if texts["text"].strip() == texts["source_text"].strip():
        raise BadInputError(
            f"'text' and 'source_text' are the same, {texts['text']!r:.80}; say in 'source_text' "
            "what the photograph shows now."
        )


def _painted(
    image: Tensor, clip_vision: comfy_host.ClipVision, sentences: Tensor, settings: Settings
) -> tuple[Layer, Tensor, list[float]]:
    """The layer, it over the photograph, and the losses."""
    with comfy_host.seeing(clip_vision) as eyes:
        device = clip_vision.load_device
        photograph = image[..., :3].movedim(-1, 1).to(device, torch.float32, copy=True)
        photograph = photograph.expand(-1, 3, -1, -1).contiguous().clamp(0, 1)
        told = Told(*sentences.to(device, torch.float32, copy=True))
        reporter = Reporter(device, settings.steps, lambda x: to_pil(x[0].movedim(0, -1)))
        layer, losses = paint(photograph, eyes, told, settings, reporter)
        return layer, layer.over(photograph), losses
