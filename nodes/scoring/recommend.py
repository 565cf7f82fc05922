"""The rule by which an eta is recommended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Choice:
    """A recommended eta: its place in the list, the range about it, and the rule.

    Attributes:
        best: its place.
        low: the place at which the range begins.
        high: the place at which it ends, itself within it.
        rule: why, in words.
    """

    best: int
    low: int
    high: int
    rule: str


def recommend(etas: list[float], faithful: list[float], aligned: list[float] | None) -> Choice:
    """Recommend an eta.

    Args:
        etas: from the lowest to the highest, two or more.
        faithful: fidelity at each.
        aligned: alignment at each, or None where it was not measured.
    """
    near = stretched(faithful)
    if aligned is None:
        falls = [before - after for before, after in pairwise(near)]
        best = falls.index(max(falls)) + 1
        good = [abs(value - near[best]) <= 0.2 for value in near]
        rule = (
            "Rule: the first eta after the steepest fall of the fidelity, for there the picture "
            "changes. The text was not looked at: wire clip_vision, clip and text for that."
        )
    else:
        balance = [min(pair) for pair in zip(near, stretched(aligned), strict=True)]
        best = max(range(len(balance)), key=balance.__getitem__)
        good = [value >= 0.8 * balance[best] for value in balance]
        rule = (
            "Rule: both curves are stretched to 0..1; the eta where the lower of the two is "
            "highest. The range is where it keeps four fifths of that."
        )
        if max(range(len(aligned)), key=aligned.__getitem__) == 0:
            rule += (
                f" But no picture fits the text better than the one at eta {etas[0]:g}: raise "
                "the eta or cfg, or train the model for fewer steps."
            )
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    return Choice(best, low, high, rule)


def stretched(values: list[float]) -> list[float]:
    """The values from 0 for the lowest to 1 for the highest; 1 each where they are all equal."""
    low, span = min(values), max(values) - min(values)
    return [(value - low) / span if span else 1.0 for value in values]
