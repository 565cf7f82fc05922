"""Custom nodes that give the miniature's CLIP without the copies that its file is full of."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from miniature import clip_layout  # noqa: E402

both = cache(clip_layout.in_host)


class MiniatureClipVision:
    """In the place of Load CLIP Vision."""

    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any]:
        return (both()[0],)


class MiniatureClip(MiniatureClipVision):
    """In the place of Load CLIP."""

    RETURN_TYPES = ("CLIP",)

    def give(self) -> tuple[Any]:
        return (both()[1],)


NODE_CLASS_MAPPINGS = {
    "MiniatureClipVision": MiniatureClipVision,
    "MiniatureClip": MiniatureClip,
}
