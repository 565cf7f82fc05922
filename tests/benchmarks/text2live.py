"""What Text2LIVE can change: colour, texture, place, accessory and pose, with a known truth.

    python tests/benchmarks/text2live.py [--json OUT.json] [--sheet OUT.png] [--dogs N] [--others N]
                     [--steps N] [--views N] [--readme]

The node of the pack in the real host, with the miniature's CLIP, on dogs that neither CLIP nor the
judge has ever seen: another colour and stripes for each, the other kinds of edit for some. The
judge is the shipped reader, which has no part in the painting; of stripes, the coat's own columns.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import dataclasses

import numpy as np
import torch
from machine import imagic
from miniature import clip, clip_layout, metrics, reader, world
from miniature.clip import Said
from PIL import Image

from benchmarks import command
from benchmarks.counterfactual import image_of, picture_of

NAMES = {
    "colour": "another colour",
    "striped": "stripes",
    "pose": "another pose",
    "place": "another place",
    "accessory": "a hat or a scarf",
}
# As far from a colour's hue as the next one's begins.
HUE_TOLERANCE = 0.5 / len(clip.COLOURS)


# The share of the true stripes' contrast at which a coat is called striped.
STRIPED = 0.4


class Edit(NamedTuple):
    """One edit: what is said, the true result, and how it is told.

    ``said`` are the node's texts; ``source`` and ``truth`` are uint8 [128, 128, 3].
    """

    kind: str
    said: dict[str, str]
    source: np.ndarray
    truth: np.ndarray
    reached: Callable[[reader.Reading, np.ndarray], bool]


def edits(index: int) -> list[Edit]:
    """An edit of each kind, of one held-out dog."""
    who, rng = world.identity("heldout", index), np.random.default_rng([83, index])
    now = world.attributes(rng)._replace(accessory="none")
    colour = clip.colour_of(who)
    place = clip.COLOURS.index(colour)
    other = (place + int(rng.integers(2, len(clip.COLOURS) - 1))) % len(clip.COLOURS)
    hue = other / len(clip.COLOURS)

    def another(values: tuple[str, ...], than: str) -> str:
        return str(rng.choice([value for value in values if value != than]))

    then = {
        "pose": now._replace(pose=another(world.POSES, now.pose)),
        "place": now._replace(place=another(world.PLACES, now.place)),
        "accessory": now._replace(accessory=another(world.ACCESSORIES, "none")),
    }
    before, source = Said(*now, None, None), world.render(who, now)
    striped = world.render(dataclasses.replace(who, marking=world.STRIPES), now)
    plain = world.render(dataclasses.replace(who, marking="plain"), now)
    coat = (plain == world.coat_colour(who, now.place)).all(-1)

    def has_stripes(_: reader.Reading, picture: np.ndarray) -> bool:
        return alternation(picture, coat) >= STRIPED * alternation(striped, coat)

    def edit(
        kind: str,
        after: Said,
        truth: np.ndarray,
        reached: Callable[[reader.Reading, np.ndarray], bool],
        now: Said = before,
    ) -> Edit:
        # Of the layer and of what it covers: what changes, and nothing else.
        layer, region = (clip.NOTHING._replace(**{kind: getattr(s, kind)}) for s in (after, now))
        said = {"text": after, "source_text": now, "layer_text": layer, "region_text": region}
        return Edit(kind, {k: clip.sentence(s) for k, s in said.items()}, source, truth, reached)

    made = [
        edit(
            "colour", before._replace(colour=clip.COLOURS[other]),
            world.render(dataclasses.replace(who, hue=hue), now),
            lambda found, _: metrics.hue_distance(found.hue, hue) <= HUE_TOLERANCE,
            before._replace(colour=colour),
        ),
        edit("striped", before._replace(striped=True), striped, has_stripes),
    ]  # fmt: skip
    for kind, wanted in then.items():
        value = getattr(wanted, kind)
        made.append(
            edit(
                kind, Said(*wanted, None, None), world.render(who, wanted),
                partial(has, kind, value),
            )
        )  # fmt: skip
    return made


def has(kind: str, value: str, found: reader.Reading, _: np.ndarray) -> bool:
    """Whether an attribute was read."""
    return getattr(found, kind) == value


def alternation(picture: np.ndarray, coat: np.ndarray) -> float:
    """How much the brightness of a coat's columns differs a stripe further on, 0..255.

    ``coat`` [H, W] says which pixels it is of; what differs within a column is averaged out.
    """
    grey, count = picture.mean(-1), coat.sum(0)
    columns = np.where(coat, grey, 0).sum(0)[count > 2] / count[count > 2]
    return float(np.abs(columns[world.STRIPE :] - columns[: -world.STRIPE]).mean())


class Studio:
    """The node with both encoders, and the judge."""

    def __init__(self, comfyui: Path, how: dict[str, Any]) -> None:
        """Start ComfyUI; ``how`` are inputs of the node, which has its own for the others."""
        self.pack = imagic.start(comfyui)
        self.how = dataclasses.asdict(self.pack.module.nodes.text2live.DEFAULT) | how
        self.eyes, self.judge = clip_layout.in_host(), reader.load()

    def run(self, edit: Edit) -> tuple[dict[str, Any], np.ndarray]:
        """The figures of one edit, and its picture."""
        began = time.monotonic()
        photograph = image_of(edit.source)
        image, _, opacity, _ = self.pack.call(
            "ImagicText2Live", photograph, *self.eyes, **edit.said, **self.how
        )
        picture = picture_of(image)
        (found,) = reader.read(self.judge, picture[None])
        return {
            "kind": edit.kind,
            "said": edit.said,
            "reached": edit.reached(found, picture),
            "is_a_dog": found.pose != reader.NO_DOG,
            "psnr": metrics.psnr(picture, edit.truth),
            "psnr_of_nothing_done": metrics.psnr(edit.source, edit.truth),
            "toward_sentence": self.nearer(photograph, image, edit.said["text"]),
            "opacity": opacity.mean().item(),
            "seconds": round(time.monotonic() - began, 1),
        }, picture

    def nearer(self, before: torch.Tensor, after: torch.Tensor, text: str) -> float:
        """How much nearer to the sentence CLIP finds the result, as a difference of cosines."""
        with torch.inference_mode():
            said = self.pack.host.sentences_of_pair(*self.eyes, [text])
            was, now = (
                torch.cosine_similarity(self.eyes[0].encode_image(p)["image_embeds"], said).item()
                for p in (before, after)
            )
        return now - was


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of each kind."""
    figures = (
        "reached", "is_a_dog", "psnr", "psnr_of_nothing_done", "toward_sentence", "opacity"
    )  # fmt: skip
    rows = []
    for kind in dict.fromkeys(r["kind"] for r in results):
        of_kind = [r for r in results if r["kind"] == kind]
        means = {f: round(float(np.mean([r[f] for r in of_kind])), 3) for f in figures}
        rows.append({"kind": kind, "edits": len(of_kind), **means})
    return rows


def as_table(kinds: list[dict[str, Any]]) -> str:
    """The means of each kind, as the README's table."""
    head = (
        "| what was asked for | the judge finds it | still a dog | PSNR to the truth | of the "
        "photograph to the truth | cosine to the sentence, gained | opacity, mean |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "".join(
        f"| {NAMES[k['kind']]} | {k['reached'] * k['edits']:.0f} of {k['edits']} "
        f"| {k['is_a_dog'] * k['edits']:.0f} of {k['edits']} | {k['psnr']:.1f} dB "
        f"| {k['psnr_of_nothing_done']:.1f} dB | {k['toward_sentence']:.2f} "
        f"| {k['opacity']:.2f} |\n"
        for k in kinds
    )


def main() -> None:
    """Run, print, write."""
    parser = command.parser(__doc__, "text2live")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument(
        "--dogs", type=int, default=3, help="dogs that get another colour, and stripes"
    )
    parser.add_argument("--others", type=int, default=1, help="dogs edited in each other way")
    parser.add_argument("--steps", type=int, help="default: the node's")
    parser.add_argument("--views", type=int, help="default: the node's")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    arguments = parser.parse_args()
    given = {"steps": arguments.steps, "views": arguments.views}
    studio = Studio(command.comfyui(), {k: v for k, v in given.items() if v is not None})
    each = [edits(index) for index in range(max(arguments.dogs, arguments.others))]
    wanted = [made[of] for of in (0, 1) for made in each[: arguments.dogs]]
    wanted += [edit for made in each[: arguments.others] for edit in made[2:]]
    results: list[dict[str, Any]] = []
    sheet: list[np.ndarray] = []
    for edit in wanted:
        found, picture = studio.run(edit)
        results.append(found)
        sheet.append(np.concatenate([edit.source, picture, edit.truth], 1))
        print(json.dumps(found), flush=True)
        # After each, so that a run cut short is not lost.
        measured = {"how": studio.how, "kinds": table(results), "edits": results}
        command.write(arguments.json, measured)
        if arguments.sheet:
            Image.fromarray(np.concatenate(sheet)).save(arguments.sheet)
    print(as_table(table(results)))
    if arguments.readme:
        command.into_readme("text2live", as_table(table(results)))


if __name__ == "__main__":
    main()
