"""What is the same for every photograph of a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tedbench.store import write

FILE = "protocol.json"
METHODS = ("imagic", "imagic_without_b", "sdedit", "ddib")
SHOWN = 0.7


class ProtocolError(Exception):
    """A protocol that cannot be, or not the one that the folder was begun with."""


@dataclass(frozen=True)
class Protocol:
    """Everything that decides what a picture looks like, and which are compared.

    Of the photograph, the middle square is scaled to ``size``; where it is taken ``whole``, all of
    it to about as many pixels. ``optimize`` and ``finetune`` are
    all inputs of Imagic's two training nodes that are not wired. The benchmark has no sentence for
    a photograph as it is, and one made up for it would be a choice, so DDIB inverts under
    ``ddib_source``, the empty sentence: it is weaker than with a good caption. Imagic and SDEdit
    each have the kind of sampler that served them best where the true result was known, in
    tests/benchmarks/counterfactual.py. ``clip`` is the folder of the CLIP that measures; None for
    the usual one where it is on the machine.
    """

    benchmark: str
    checkpoint: str
    optimize: dict[str, Any]
    finetune: dict[str, Any]
    size: int = 512
    whole: bool = False
    seed: int = 0
    etas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    strengths: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    steps: int = 30
    cfg: float = 4.0
    sampler: str = "euler_ancestral"
    sdedit_sampler: str = "euler"
    scheduler: str = "normal"
    negative: str = ""
    ddib_source: str = ""
    clip: str | None = None
    page_rule: str = (
        f"the same for every photograph: the eta, and the strength, nearest to {SHOWN}; "
        "of two the lower"
    )

    def __post_init__(self) -> None:
        if self.size < 64 or self.size % 8:
            raise ProtocolError(f"size is {self.size}, but must be a multiple of 8 from 64 up")
        for name, grid in (("etas", self.etas), ("strengths", self.strengths)):
            if not grid or len({f"{value:.2f}" for value in grid}) < len(grid):
                raise ProtocolError(f"{name} must be different to two decimals, not {grid}")
        if not all(0 < strength <= 1 for strength in self.strengths):
            raise ProtocolError(f"strengths must lie above 0 and up to 1, not {self.strengths}")

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Width and height at which a photograph is edited, multiples of 8, in pixels."""
        if not self.whole:
            return self.size, self.size
        factor = self.size / (width * height) ** 0.5
        across, down = (max(64, 8 * round(side * factor / 8)) for side in (width, height))
        return across, down

    def settings(self, method: str) -> dict[str, float | None]:
        """The method's settings by the name of the folder that their pictures lie in."""
        if method == "ddib":
            return {"": None}
        if method == "sdedit":
            return {f"strength_{value:.2f}": value for value in self.strengths}
        return {f"eta_{value:.2f}": value for value in self.etas}

    def shown(self, method: str) -> str:
        """The setting that people are shown, by ``page_rule``."""
        values = {s: value for s, value in self.settings(method).items() if value is not None}
        if not values:
            return ""
        return min(values, key=lambda s: (round(abs(values[s] - SHOWN), 6), values[s]))


def begin(folder: Path, protocol: Protocol) -> None:
    """Write the protocol into a new folder, or make sure that an old one has the same.

    Raises:
        ProtocolError: it has another; the message names each difference.
    """
    # As it is read back: tuples become lists.
    wanted = json.loads(json.dumps(dataclasses.asdict(protocol)))
    file = folder / FILE
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ProtocolError(f"{folder} has files, but none of them is {FILE}; name a new one")
        write(file, json.dumps(wanted, indent=1).encode())
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    different = [
        f"  {name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
        for name in [*wanted, *(set(found) - set(wanted))]
        if found.get(name) != wanted.get(name)
    ]
    if different:
        raise ProtocolError(
            f"{folder} was begun with another protocol:\n" + "\n".join(different)
            + "\nOne run has one protocol: give it the same again, or name a new folder."
        )  # fmt: skip


def load(folder: Path) -> Protocol:
    """The protocol that a folder was begun with.

    Raises:
        ProtocolError: there is none.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        grids = {name: tuple(found[name]) for name in ("etas", "strengths")}
        return Protocol(**{**found, **grids})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"{folder} is not the folder of a run: {error}") from None
