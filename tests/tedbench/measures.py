"""How near pictures are to the photograph and to the sentence, by implementations that others keep.

Nothing is downloaded. Where the weights of LPIPS are not on this machine, SSIM takes its place
under its own name; where CLIP's are not, nothing does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor
from torchvision.models import AlexNet_Weights

FIDELITY, ALIGNMENT, DIRECTION = "fidelity", "alignment", "direction"
CLIP = "openai/clip-vit-large-patch14"
# What the picture is said to show before the edit, where the list of edits does not say it.
UNNAMED = "a photo"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

About = dict[str, str]
Values = list[float | None]


@dataclass(frozen=True)
class Judge:
    """Something that measures.

    Attributes:
        about: of each measure by its name: ``of`` (FIDELITY, ALIGNMENT or DIRECTION), ``range``,
            ``by`` which implementation, with which ``weights``.
        measure: told the pictures of an edit (RGB of one size, 64 pixels or more; the first is the
            photograph), what they shall show, and what the photograph shows (may be empty),
            returns by measure one value for each picture; None where there is nothing to measure.
    """

    about: dict[str, About]
    measure: Callable[[Sequence[Image.Image], str, str], dict[str, Values]]


def ssim() -> Judge:
    """Structural similarity, for want of LPIPS."""

    def measure(pictures: Sequence[Image.Image], text: str, source: str) -> dict[str, Values]:
        original, *_ = seen = [np.asarray(picture) for picture in pictures]
        found = [
            structural_similarity(
                picture, original, channel_axis=2, gaussian_weights=True,
                use_sample_covariance=False,
            )
            for picture in seen
        ]  # fmt: skip
        return {"SSIM": [float(value) for value in found]}

    about = {
        "of": FIDELITY,
        "range": "up to 1, the photograph itself",
        "by": f"scikit-image {version('scikit-image')}, as Wang et al. (2004) define it",
        "weights": f"none; 1 - LPIPS was not measured, for {alexnet().name} is not in torch's "
        "cache on this machine",
    }
    return Judge({"SSIM": about}, measure)


def lpips() -> Judge:
    """Perceptual similarity (Zhang et al., 2018) on AlexNet."""
    # Takes seconds to load, of which a machine without the weights has no use.
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    network.to(DEVICE).eval()
    name = "1 - LPIPS (AlexNet)"

    def measure(pictures: Sequence[Image.Image], text: str, source: str) -> dict[str, Values]:
        seen = _tensor(pictures)
        with torch.no_grad():
            return {name: [1 - network(one[None], seen[:1]).item() for one in seen]}

    about = {
        "of": FIDELITY,
        "range": "up to 1, the photograph itself",
        "by": f"torchmetrics {version('torchmetrics')}, linear layers of LPIPS 0.1",
        "weights": f"{alexnet().name}; {_digest(network)}",
    }
    return Judge({name: about}, measure)


def clip(folder: str) -> Judge:
    """CLIP's cosines: of picture and sentence, and of the ways that both went.

    Args:
        folder: one in the form of transformers, or the name of a model in its cache.

    Raises:
        OSError: there is none.
    """
    from transformers import CLIPModel, CLIPProcessor

    # The signature that transformers gives to `to` is not that of its call.
    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
    model.to(DEVICE).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    short = Path(folder).name
    score, direction = f"CLIP score ({short})", f"CLIP direction ({short})"

    def measure(pictures: Sequence[Image.Image], text: str, source: str) -> dict[str, Values]:
        inputs = processor(
            text=[text, source or UNNAMED], images=list(pictures),
            return_tensors="pt", padding=True, truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
        ).to(DEVICE)  # fmt: skip
        with torch.inference_mode():
            found = model(**inputs)
        seen = F.normalize(found.image_embeds, dim=-1)
        target, before = F.normalize(found.text_embeds, dim=-1)
        way = F.cosine_similarity(seen[1:] - seen[:1], (target - before)[None])
        return {score: (seen @ target).tolist(), direction: [None, *way.tolist()]}

    how = {
        "range": "-1 to 1, a cosine",
        "by": f"transformers {version('transformers')}",
        "weights": f"{folder}; {_digest(model)}",
    }
    begins = f"the photograph and its source_text, without one '{UNNAMED}'"
    return Judge(
        {score: {"of": ALIGNMENT} | how, direction: {"of": DIRECTION, "from": begins} | how},
        measure,
    )


def judges(named: str | None) -> list[Judge]:
    """All that can measure on this machine, by the CLIP ``named`` or, if None, by the usual one.

    Raises:
        OSError: the CLIP that is named is not there.
    """
    found: list[Judge] = [lpips() if alexnet().is_file() else ssim()]
    try:
        if named or _is_cached(CLIP):
            found.append(clip(named or CLIP))
    except OSError:
        if named:
            raise
    return found


def _is_cached(model: str) -> bool:
    # Without what `clip` has to load for a look.
    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def alexnet() -> Path:
    """Where torchvision keeps the network that LPIPS looks through."""
    file = Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """[N, 3, H, W] in 0..1."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(pixels).movedim(-1, 1).to(DEVICE) / 255


def _digest(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for values in network.state_dict().values():
        digest.update(values.cpu().numpy().tobytes())
    return f"SHA-256 of all values {digest.hexdigest()}"
