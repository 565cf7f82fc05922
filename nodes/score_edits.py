"""Fidelity and alignment over eta, as in the paper's figure 9."""

from __future__ import annotations

import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from . import comfy_host, schema
from .checks import checked
from .errors import BadInputError, named
from .pictures import to_image
from .scoring.chart import chart
from .scoring.measures import Measured, clip_score, fidelity
from .scoring.recommend import recommend
from .scoring.scores import Scores, as_json, as_text
from .sweep import sweep_pictures

NAME = "Imagic Score Edits"


class ImagicScoreEdits(io.ComfyNode):
    """The paper's figure 9."""

    @classmethod
    @schema.found_by("choose eta", "compare", "clip score", "lpips", "ssim", "figure 9")
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ImagicScoreEdits",
            display_name=NAME,
            category=schema.TOOLS,
            description="Measures how near each picture of a sweep is to your photograph, and, "
            "with CLIP, to your sentence; draws both over eta and recommends one. You choose.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures of the sweep, from VAE Decode."),
                io.Image.Input("original", tooltip="Your photograph, as wired to VAE Encode."),
                io.Float.Input("etas", force_input=True, tooltip="From Imagic Eta Sweep."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="From Load CLIP Vision. Without it the text is not looked at.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP, from Load CLIP.",
                ),
                io.String.Input(
                    "text",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Your sentence, for the alignment.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="curves", tooltip="Both curves over eta."),
                io.String.Output(display_name="table", tooltip="For Preview Any."),
                io.Float.Output(
                    display_name="recommended_eta",
                    tooltip="For eta of Imagic Interpolate Conditioning.",
                ),
                io.Image.Output(
                    display_name="recommended_image", tooltip="The picture of that eta."
                ),
                io.Float.Output(
                    display_name="closer_start",
                    tooltip="The eta before it, for start of another Imagic Eta Sweep that looks "
                    "closer.",
                ),
                io.Float.Output(
                    display_name="closer_stop", tooltip="The eta after it, for stop of that sweep."
                ),
            ],
        )

    @classmethod
    @named(NAME)
    @checked()
    def execute(
        cls,
        images: list[Tensor],
        original: list[Tensor],
        etas: list[float],
        clip_vision: list[comfy_host.ClipVision] | None = None,
        clip: list[comfy_host.Clip] | None = None,
        text: list[str] | None = None,
    ) -> io.NodeOutput:
        """Measure, draw, recommend."""
        sentence = text[0].strip() if text else ""
        wired = {"clip_vision": clip_vision, "clip": clip, "text": sentence}
        missing = [name for name, value in wired.items() if not value]
        if missing and (clip_vision or clip):
            raise BadInputError(
                f"'{missing[0]}' is not given, and alignment needs 'clip_vision', 'clip' "
                "and 'text'; give all three, or disconnect both encoders."
            )
        pictures = [p[..., :3] for p in sweep_pictures("images", images, etas)]
        if len(set(etas)) < max(3, len(etas)):
            raise BadInputError(
                f"'etas' has {len(set(etas))} different values of {len(etas)}; connect an "
                "Imagic Eta Sweep with a count of at least 3."
            )
        order = sorted(range(len(etas)), key=etas.__getitem__)
        etas, pictures = [etas[i] for i in order], [pictures[i] for i in order]
        faithful = _fidelity(pictures, original[0])
        aligned = None
        if clip_vision and clip:
            aligned = _alignment(pictures, clip_vision[0], clip[0], sentence)
        choice = recommend(etas, faithful.values, aligned.values if aligned else None)
        scores = Scores(etas, faithful, aligned)
        curves = to_image(chart(scores, choice))
        return io.NodeOutput(
            curves,
            as_text(scores, choice),
            etas[choice.best],
            pictures[choice.best],
            etas[max(choice.best - 1, 0)],
            etas[min(choice.best + 1, len(etas) - 1)],
            ui=ui.PreviewImage(curves).as_dict() | {"scores": (as_json(scores),)},
        )


def _fidelity(pictures: list[Tensor], original: Tensor) -> Measured:
    measured = fidelity(pictures, _matched(original, pictures[0]))
    if max(measured.values) - min(measured.values) < 1e-6:
        raise BadInputError(
            f"all {len(pictures)} pictures of 'images' are equally near to 'original' "
            f"({measured.name} {measured.values[0]:.4f}), so there is nothing to choose; connect "
            "pictures that were sampled at different eta."
        )
    return measured


def _matched(original: Tensor, picture: Tensor) -> Tensor:
    """The photograph at the pictures' size; one of another proportion cannot be what was edited."""
    (height, width), (h, w) = original.shape[1:3], picture.shape[1:3]
    if abs(width / height * h / w - 1) > 0.1:
        raise BadInputError(
            f"'original' is {width} x {height}, but 'images' are {w} x {h}; connect the "
            "photograph as it goes to VAE Encode, cropped alike."
        )
    photograph = original[:1, ..., :3].movedim(-1, 1).float()
    photograph = F.interpolate(photograph, (h, w), mode="bicubic", antialias=True)
    return photograph.clamp(0, 1).movedim(1, -1)


def _alignment(
    pictures: list[Tensor],
    clip_vision: comfy_host.ClipVision,
    clip: comfy_host.Clip,
    sentence: str,
) -> Measured:
    told = comfy_host.sentences_of_pair(clip_vision, clip, [sentence])
    seen = [clip_vision.encode_image(p)["image_embeds"].float().cpu() for p in pictures]
    return clip_score(seen, told)
