"""The figures that edits are judged by."""

import dataclasses

import numpy as np
import pytest

from miniature import metrics, world
from miniature.reader import NO_DOG, Reading
from miniature.world import Attributes

WHO = world.identity("tuning", 2)
SOURCE = Attributes("standing", "grass", "none")
WANTED = Attributes("sitting", "grass", "none")


def honest(**changes):
    """The reading of a perfect edit, with changes."""
    names = {f.name for f in dataclasses.fields(Reading)}
    same = {n: v for n, v in vars(WHO).items() if n in names}
    return Reading(**{**WANTED._asdict(), **same, **changes})


def test_psnr_of_a_known_error():
    a = np.zeros((8, 8, 3), np.uint8)
    assert metrics.psnr(a, a + 51) == pytest.approx(20 * np.log10(5))
    assert metrics.psnr(a, a) == float("inf")
    # unsigned bytes must not wrap around
    assert metrics.psnr(a + 51, a) == metrics.psnr(a, a + 51)


def test_ssim_is_one_for_equal_pictures_and_falls_with_structure_not_with_brightness():
    picture = world.render(WHO, SOURCE)
    assert metrics.ssim(picture, picture) == pytest.approx(1)
    brighter = np.clip(picture.astype(int) + 8, 0, 255).astype(np.uint8)
    other = world.render(WHO, WANTED)
    assert metrics.ssim(picture, brighter) > 0.97 > metrics.ssim(picture, other)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, picture.shape).astype(np.uint8)
    assert metrics.ssim(picture, noise) < 0.1


def test_outside_error_looks_only_where_source_and_truth_agree():
    source, truth = world.render(WHO, SOURCE), world.render(WHO, WANTED)
    assert metrics.outside_error(truth, source, truth) == 0
    assert metrics.outside_error(source, source, truth) == 0
    result = truth.copy()
    result[:10] = 255 - result[:10]
    error = metrics.outside_error(result, source, truth)
    assert error > 1
    # with its arguments swapped it looks at another region
    assert metrics.outside_error(source, result, truth) != pytest.approx(error)


def test_an_edit_of_everything_has_no_outside():
    other = world.render(WHO, Attributes("standing", "night", "none"))
    source = world.render(WHO, SOURCE)
    assert metrics.outside_error(255 - source, source, other) == 0


def test_hue_distance_goes_round_the_circle():
    assert metrics.hue_distance(0.98, 0.02) == pytest.approx(0.04)
    assert metrics.hue_distance(0.25, 0.75) == pytest.approx(0.5)


def test_a_perfect_edit_is_reached_and_kept():
    assert metrics.reached(honest(), WANTED, "pose")
    assert metrics.rest_kept(honest(), WHO, WANTED, "pose", outside=0.0)


def test_reached_asks_for_the_edited_attribute_only():
    assert not metrics.reached(honest(pose="standing"), WANTED, "pose")
    assert metrics.reached(honest(place="snow"), WANTED, "pose")


@pytest.mark.parametrize(
    "change",
    [
        {"place": "snow"},
        {"accessory": "hat"},
        {"pose": NO_DOG},
        {"facing": -WHO.facing},
        {"hue": (WHO.hue + 0.07) % 1},
        {"x": WHO.x + 7},
        {"scale": WHO.scale + 0.1},
        {"ears": "none", "tail": "none"},
    ],
)
def test_each_loss_of_identity_or_attribute_counts(change):
    assert not metrics.rest_kept(honest(**change), WHO, WANTED, "pose", outside=0.0)


def test_changes_outside_the_region_count():
    beyond = metrics.OUTSIDE_TOLERANCE + 0.1
    assert not metrics.rest_kept(honest(), WHO, WANTED, "pose", outside=beyond)
