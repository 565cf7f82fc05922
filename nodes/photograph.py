"""The photograph that the example workflows open on."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

PHOTOGRAPH = Path(__file__).parent.parent / "example_workflows/photographs/imagic_cat.jpg"


def offer_photograph(inputs: Path) -> None:
    """Put it where Load Image looks, which takes no picture from elsewhere.

    A file of its name is left as it is. Where it cannot be written, the examples ask for another
    picture and all else works, so that is only logged.
    """
    place = inputs / PHOTOGRAPH.name
    if place.exists():
        return
    try:
        shutil.copyfile(PHOTOGRAPH, place)
    except OSError as error:
        logging.info("Imagic: no photograph for the example workflows, %s", error)
