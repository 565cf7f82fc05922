"""Imagic Eta Sweep and Imagic Contact Sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from host import given


def flat(value: float, count: int = 1, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    """An IMAGE of one grey."""
    return torch.full((count, *size, 3), value)


# ---- eta sweep ------------------------------------------------------------------------------


def test_a_sweep_is_equation_4_at_each_eta(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    conditionings, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.0, 1.0, 6)
    assert etas == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(conditionings) == 6
    for conditioning, eta in zip(conditionings, etas, strict=True):
        (expected,) = nodes.interpolate(target, optimized, eta)
        assert torch.equal(conditioning[0][0], expected[0][0])
        pooled = [c[0][1]["pooled_output"] for c in (conditioning, expected)]
        assert torch.equal(*pooled)


def test_a_sweep_of_one_is_its_start(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    _, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.7, 1.0, 1)
    assert etas == [0.7]


def test_a_sweep_refuses_another_text_encoders_sentence(nodes):
    with pytest.raises(ValueError, match="Eta Sweep: 'target' and 'optimized' do not match"):
        nodes.call("ImagicEtaSweep", given.conditioning(width=1024), given.conditioning(), 0, 1, 2)


# ---- contact sheet --------------------------------------------------------------------------


def places(sheet: torch.Tensor, value: float) -> np.ndarray:
    """Where a sheet shows one grey: [n, 2] rows and columns."""
    return np.argwhere((sheet[0] - value).abs().amax(-1).numpy() < 0.01)


def test_a_sheet_shows_every_picture_once_in_order(nodes):
    etas = [0.0, 0.5, 1.0]
    tuned = [flat(v) for v in (0.2, 0.4, 0.6)]
    plain = [flat(v) for v in (0.3, 0.5, 0.7)]
    (sheet,) = nodes.call("ImagicContactSheet", tuned, etas, plain, [flat(0.8)], [320])
    found = {v: places(sheet, v) for v in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}
    assert all(len(p) >= 64 * 48 for p in found.values())
    left = {v: p[:, 1].mean() for v, p in found.items()}
    top = {v: p[:, 0].mean() for v, p in found.items()}
    assert left[0.8] < left[0.2] < left[0.4] < left[0.6]
    assert left[0.2] == pytest.approx(left[0.3], abs=1)
    assert top[0.3] < top[0.8] < top[0.2] and top[0.2] == pytest.approx(top[0.6], abs=1)


def test_the_seeds_of_a_batch_are_rows(nodes):
    pictures = [torch.cat([flat(0.2), flat(0.4)]), torch.cat([flat(0.6), flat(0.8)])]
    (sheet,) = nodes.call("ImagicContactSheet", pictures, [0.0, 1.0])
    top, left = {}, {}
    for value in (0.2, 0.4, 0.6, 0.8):
        top[value], left[value] = places(sheet, value).mean(0)
    assert top[0.4] > top[0.2] + 60 and left[0.6] > left[0.2] + 45
    assert left[0.4] == pytest.approx(left[0.2], abs=1)
    assert top[0.8] == pytest.approx(top[0.4], abs=1)


def test_one_batch_may_be_the_whole_sweep(nodes):
    one = torch.cat([flat(0.2), flat(0.4)])
    (sheet,) = nodes.call("ImagicContactSheet", [one], [0.0, 1.0])
    (other,) = nodes.call("ImagicContactSheet", [one[:1], one[1:]], [0.0, 1.0])
    assert torch.equal(sheet, other)


def test_labels_tell_the_etas_apart(nodes):
    pictures = [flat(0.5), flat(0.5)]
    (sheet,) = nodes.call("ImagicContactSheet", pictures, [0.0, 1.0])
    (other,) = nodes.call("ImagicContactSheet", pictures, [0.0, 0.9])
    assert sheet.shape != other.shape or not torch.equal(sheet, other)


def test_large_pictures_are_reduced_to_the_tile(nodes):
    (sheet,) = nodes.call("ImagicContactSheet", [flat(0.5, size=(640, 320))], tile_size=[64])
    assert len(places(sheet, 0.5)) == pytest.approx(64 * 32, rel=0.1)


@pytest.mark.parametrize(
    ("images", "etas", "pretrained", "message"),
    [
        ([0.1, 0.2], [0.0], None, "'images' has 2 pictures, but 'etas' has 1"),
        ([0.1, 0.2], [0.0, 1.0], [0.1, 0.2, 0.3], "'pretrained' has 3 pictures"),
        ([0.1, 0.2], None, [0.1, 0.2, 0.3], "'pretrained' has 3 pictures of 1 seeds"),
    ],
)
def test_a_sheet_refuses_pictures_that_do_not_match(nodes, images, etas, pretrained, message):
    images, pretrained = ([flat(v) for v in g] if g else None for g in (images, pretrained))
    with pytest.raises(ValueError, match=f"Imagic Contact Sheet: {message}"):
        nodes.call("ImagicContactSheet", images, etas, pretrained)


def test_a_sheet_refuses_pictures_of_different_sizes(nodes):
    with pytest.raises(ValueError, match="different shapes"):
        nodes.call("ImagicContactSheet", [flat(0.1), flat(0.2, size=(32, 32))])
