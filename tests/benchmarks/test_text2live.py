"""The judge of stripes, which no reader knows."""

import numpy as np
import pytest
from miniature import clip

from benchmarks import text2live


@pytest.fixture(scope="module")
def edit():
    """A held-out dog, to be striped."""
    return next(e for e in text2live.edits(0) if e.kind == "striped")


def test_stripes_are_asked_for_of_the_coat_alone(edit):
    assert "striped" in edit.said["text"] and "striped" not in edit.said["source_text"]
    assert edit.said["layer_text"] == clip.sentence(clip.NOTHING._replace(striped=True))
    changed = (edit.truth != edit.source).any(-1)
    assert 0.01 < changed.mean() < 0.15
    assert edit.reached(None, edit.truth) and not edit.reached(None, edit.source)


def test_no_tint_no_shading_and_no_noise_is_taken_for_stripes(edit):
    rng, side = np.random.default_rng(0), edit.source.shape[0]
    shaded = np.linspace(0, 120, side)[None, :, None]
    for change in (60, shaded, rng.integers(-120, 120, edit.source.shape)):
        picture = (edit.source + change).clip(0, 255).astype(np.uint8)
        assert not edit.reached(None, picture)
