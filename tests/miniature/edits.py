"""The edits that the benchmark asks for, with their true results. The default `--world`."""

from dataclasses import dataclass

import numpy as np
import torch

from miniature import clip_layout, metrics, reader, world
from miniature.captions import caption
from miniature.world import Attributes, Identity

KINDS = ("pose", "place", "accessory")
VALUES = {"pose": world.POSES, "place": world.PLACES, "accessory": world.ACCESSORIES}


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
    """What a judge says of one result.

    Attributes:
        reached: the asked attribute is there.
        kept: all else is as it was.
        seen: a CLIP, which was trained by itself, finds the asked attribute, too.
    """

    reached: bool
    kept: bool
    seen: bool


def edits(count: int, split: str = "heldout") -> list[KnownEdit]:
    """The first `count` edits: one a dog, pose, place and accessory in turn."""
    made = []
    for index in range(count):
        rng = np.random.default_rng([97, index])
        kind = KINDS[index % len(KINDS)]
        who, now = world.identity(split, index), world.attributes(rng)
        if kind == "accessory":
            now = now._replace(accessory="none")
        other = str(rng.choice([v for v in VALUES[kind] if v != getattr(now, kind)]))
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
    """Looks at results with the shipped reader, and with the shipped CLIP."""

    def __init__(self) -> None:
        """Load both once."""
        self.reader, self.clip = reader.load(), clip_layout.load()

    def __call__(self, edit: KnownEdit, result: np.ndarray) -> Verdict:
        """Whether the asked attribute is there, and whether all else is as it was."""
        (found,) = reader.read(self.reader, result[None])
        outside = metrics.outside_error(result, edit.source, edit.truth)
        return Verdict(
            metrics.reached(found, edit.wanted, edit.kind),
            metrics.rest_kept(found, edit.who, edit.wanted, edit.kind, outside),
            self.sees(edit, result),
        )

    @torch.no_grad()
    def sees(self, edit: KnownEdit, result: np.ndarray) -> bool:
        """Whether the asked sentence is the nearest of those with any value of the attribute."""
        values = VALUES[edit.kind]
        said = [caption(edit.wanted._replace(**{edit.kind: value})) for value in values]
        picture = torch.tensor(result).permute(2, 0, 1)[None] / 255
        nearest = (self.clip.see(picture) @ self.clip.read(said).T).argmax().item()
        return values[int(nearest)] == getattr(edit.wanted, edit.kind)
