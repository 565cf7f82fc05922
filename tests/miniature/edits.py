"""The edits that the benchmark asks for, with their true results. The default `--world`."""

from dataclasses import dataclass

import numpy as np

from miniature import metrics, reader, world
from miniature.captions import caption
from miniature.world import Attributes, Identity

KINDS = ("pose", "place", "accessory")


@dataclass(frozen=True)
class KnownEdit:
    """One edit; pictures are uint8 [128, 128, 3]."""

    name: str
    kind: str
    source: np.ndarray
    truth: np.ndarray
    source_text: str
    target_text: str
    who: Identity
    wanted: Attributes


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one result."""

    reached: bool
    kept: bool


def edits(count: int, split: str = "heldout") -> list[KnownEdit]:
    """The first `count` edits: one a dog, pose, place and accessory in turn."""
    made = []
    for index in range(count):
        rng = np.random.default_rng([97, index])
        kind = KINDS[index % len(KINDS)]
        who, now = world.identity(split, index), world.attributes(rng)
        if kind == "accessory":
            now = now._replace(accessory="none")
        values = {"pose": world.POSES, "place": world.PLACES, "accessory": world.ACCESSORIES}[kind]
        other = str(rng.choice([v for v in values if v != getattr(now, kind)]))
        wanted = now._replace(**{kind: other})
        made.append(
            KnownEdit(
                f"{index:03d} {kind}: {getattr(now, kind)} to {other}",
                kind,
                world.render(who, now),
                world.render(who, wanted),
                caption(now),
                caption(wanted),
                who,
                wanted,
            )
        )
    return made


class Judge:
    """Looks at results with the shipped reader."""

    def __init__(self) -> None:
        """Load the reader once."""
        self.reader = reader.load()

    def __call__(self, edit: KnownEdit, result: np.ndarray) -> Verdict:
        """Whether the asked attribute is there, and whether all else is as it was."""
        (found,) = reader.read(self.reader, result[None])
        outside = metrics.outside_error(result, edit.source, edit.truth)
        return Verdict(
            metrics.reached(found, edit.wanted, edit.kind),
            metrics.rest_kept(found, edit.who, edit.wanted, edit.kind, outside),
        )
