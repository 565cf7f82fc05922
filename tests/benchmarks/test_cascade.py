"""The cascade benchmark's figures and its table."""

from __future__ import annotations

import numpy as np
import pytest
from miniature.edits import edits
from miniature.upscaler.train import pixels, small
from PIL import Image

from benchmarks import cascade


def test_small_pictures_are_made_as_in_training():
    picture = edits(1)[0].truth
    ours = pixels(cascade.small(picture)[None])
    assert (ours - small(pixels(picture[None]))).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("how", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_enlarging_and_making_small_again_returns_about_the_same(how):
    picture = cascade.small(edits(1)[0].truth)
    back = cascade.small(cascade.interpolated(picture, how))
    apart = np.abs(back.astype(int) - picture).mean()
    assert back.shape == picture.shape and apart < 2


def test_the_truth_itself_has_the_best_score():
    edit = edits(1)[0]
    best, worse = cascade.score(edit.truth, edit), cascade.score(edit.source, edit)
    assert best == {"psnr": float("inf"), "ssim": 1.0, "unchanged": 0.0}
    assert worse["psnr"] < 40 and worse["ssim"] < 1 and worse["unchanged"] == 0.0


def figures(psnr: float) -> dict[str, float]:
    return {"psnr": psnr, "ssim": 0.5, "unchanged": 2.0}


def found(loaded: float, taught: float) -> dict:
    ways = dict(zip(cascade.WAYS, map(figures, (20.0, 21.0, loaded, taught)), strict=True))
    return {
        "from the true result": ways,
        "from Imagic's edit": ways | {"the edit itself": figures(30.0)},
    }


def test_the_table_has_means_and_how_often_fine_tuning_gains():
    each = [found(25, 26), found(27, 26), found(24, 30), found(24, 30)]
    rows = cascade.means(each)["from Imagic's edit"]
    assert rows["x4 as loaded"]["psnr"] == 25 and rows["x4 fine-tuned"]["psnr"] == 28
    assert rows["x4 fine-tuned"]["nearer"] == 0.75 and "nearer" not in rows["bicubic"]
    lines = cascade.table(each).splitlines()
    assert len(lines) == 2 + 4 + 5 and {line.count("|") for line in lines} == {7}
    assert "| 28.00 dB | 0.500 | 2.00 | 75 % |" in lines[5]
