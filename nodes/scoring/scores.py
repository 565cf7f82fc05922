"""The scores of a sweep, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .measures import Measured
from .recommend import Choice


@dataclass(frozen=True)
class Scores:
    """What was measured over eta.

    Attributes:
        etas: from the lowest to the highest.
        fidelity: to the photograph, at each eta.
        alignment: to the sentence, at each eta; None where it was not measured.
    """

    etas: list[float]
    fidelity: Measured
    alignment: Measured | None = None

    @property
    def measures(self) -> list[Measured]:
        """All that were taken."""
        return [self.fidelity, *([self.alignment] if self.alignment else [])]


def as_text(scores: Scores, choice: Choice) -> str:
    """The scores as a table, with the recommendation and its rule."""
    lines = ["eta    " + "  ".join(f"{name:>10}" for name, _ in scores.measures)]
    for i, eta in enumerate(scores.etas):
        cells = "  ".join(f"{values[i]:10.4f}" for _, values in scores.measures)
        lines.append(f"{eta:<5g}  {cells}{'  <- recommended' if i == choice.best else ''}")
    lines += ["", choice.rule, "This only recommends: look at the pictures, and choose yourself."]
    return "\n".join(lines)


def as_json(scores: Scores) -> str:
    """`etas`, and `measures`: each one's values by its name."""
    return json.dumps({"etas": scores.etas, "measures": dict(scores.measures)})
