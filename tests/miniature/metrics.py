"""How far two pictures are apart. Pictures are uint8 [128, 128, 3]."""

import numpy as np
from skimage.metrics import structural_similarity

from miniature.reader import NO_DOG, Reading
from miniature.world import Attributes, Identity

# When is an identity kept? Fixed before any edit was measured, and so that what the autoencoder
# alone does to the true result nearly always passes.
HUE_TOLERANCE = 0.06
X_TOLERANCE = 6.0
SCALE_TOLERANCE = 0.09
FEATURES_KEPT = 2
# Mean absolute error, of 255, outside the region that an edit truly changes.
OUTSIDE_TOLERANCE = 18.0
# Below this share of the picture, the region is too small to say anything.
OUTSIDE_AT_LEAST = 0.05


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB; infinite for equal pictures."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of the luminance in windows of 7 x 7, 1 for equal pictures."""
    x, y = (p.astype(np.float64) @ (0.299, 0.587, 0.114) for p in (a, b))
    return float(structural_similarity(x, y, data_range=255, use_sample_covariance=False))


def outside_error(result: np.ndarray, source: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error to the source where source and truth agree to the bit.

    An edit that changes nearly everything leaves only specks outside: the error is 0 then.
    """
    same = (source == truth).all(-1)
    if same.mean() < OUTSIDE_AT_LEAST:
        return 0.0
    return float(np.abs(result.astype(np.float64) - source)[same].mean())


def hue_distance(a: float, b: float) -> float:
    """Distance on the circle of hues, in turns, 0 .. 0.5."""
    return abs((a - b + 0.5) % 1 - 0.5)


def reached(reading: Reading, wanted: Attributes, edited: str) -> bool:
    """Whether the attribute that was asked for is there."""
    return getattr(reading, edited) == getattr(wanted, edited)


def identity_kept(reading: Reading, who: Identity) -> bool:
    """Whether it is still the same dog, by the tolerances above."""
    features = sum(getattr(reading, n) == getattr(who, n) for n in ("ears", "tail", "marking"))
    return (
        reading.pose != NO_DOG
        and reading.facing == who.facing
        and hue_distance(reading.hue, who.hue) <= HUE_TOLERANCE
        and abs(reading.x - who.x) <= X_TOLERANCE
        and abs(reading.scale - who.scale) <= SCALE_TOLERANCE
        and features >= FEATURES_KEPT
    )


def rest_kept(
    reading: Reading, who: Identity, wanted: Attributes, edited: str, outside: float
) -> bool:
    """Whether everything but the edited attribute is kept: attributes, identity, pixels."""
    others = (n for n in Attributes._fields if n != edited)
    return (
        all(getattr(reading, n) == getattr(wanted, n) for n in others)
        and identity_kept(reading, who)
        and outside <= OUTSIDE_TOLERANCE
    )
