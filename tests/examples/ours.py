"""The miniature's own picture of an animal, and what a workflow must be told to edit it."""

from __future__ import annotations

from pathlib import Path

from miniature import world
from PIL import Image

SENTENCE = "a photo of a sitting dog on the grass"
MEGAPIXELS = 128 * 128 / 1024**2


def photograph(folder: Path) -> Path:
    """Draw a picture of an animal that the miniature was not trained on."""
    who = world.identity("heldout", 7)
    drawn = world.render(who, world.Attributes("standing", "grass", "none"))
    file = folder / "photograph.png"
    Image.fromarray(drawn).save(file)
    return file
