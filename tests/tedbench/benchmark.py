"""TEdBench as it lies on disk, or any folder of photographs with a list of sentences."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

# What file systems take, 255 bytes, less what is put to it.
LONGEST_NAME = 240


class BenchmarkError(Exception):
    """The folder is not what it should be; the message says where."""


@dataclass(frozen=True)
class Task:
    """One photograph and the sentence that it shall show; ``source`` says what it shows now."""

    picture: Path
    text: str
    source: str = ""

    @property
    def name(self) -> str:
        """The benchmark's name of the result: `dog.png-A_photo_of_a_sitting_dog`, no extension."""
        return f"{self.picture.name}-{self.text.strip().removesuffix('.').replace(' ', '_')}"


def read(folder: Path) -> list[Task]:
    """The edits of a folder, in its own order.

    Its `input_list.json` is a list of objects with `img_name`, `target_text` and, where it is
    known, `source_text`. The photographs lie in `originals/`, as in TEdBench, or in the folder
    itself.

    Raises:
        BenchmarkError: a file is missing or has another layout, or two edits share a name.
    """
    pictures = folder / "originals" if (folder / "originals").is_dir() else folder
    try:
        listed = json.loads((folder / "input_list.json").read_text(encoding="utf-8"))
        edits = [
            Task(pictures / e["img_name"], e["target_text"], e.get("source_text", ""))
            for e in listed
        ]
    except OSError as error:
        raise BenchmarkError(f"{folder} is not a folder of edits: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchmarkError(
            f"{folder / 'input_list.json'} is not a list of img_name and target_text: {error!r}"
        ) from None
    names = set()
    for edit in edits:
        too_long = len(edit.name.encode()) > LONGEST_NAME
        if edit.picture.parent != pictures or {"/", "\\"} & set(edit.name) or too_long:
            raise BenchmarkError(f"'{edit.name}' cannot be the name of a file")
        if not edit.picture.is_file():
            raise BenchmarkError(f"{edit.picture} is in the list, but not in the folder")
        if edit.name in names:
            raise BenchmarkError(f"two edits would be written as '{edit.name}.png'")
        names.add(edit.name)
    return edits


def digest(folder: Path) -> str:
    """SHA-256 of the list, in hexadecimal: which benchmark this is."""
    return hashlib.sha256((folder / "input_list.json").read_bytes()).hexdigest()


def choose(edits: list[Task], wanted: list[str]) -> list[Task]:
    """Some of the edits, in the benchmark's order.

    Args:
        edits: all.
        wanted: nothing for all; one number N for every (all / N)th, so that different photographs
            are among them; else names of edits or of photographs.

    Raises:
        BenchmarkError: there are fewer than N, or none of a name.
    """
    if not wanted:
        return edits
    if len(wanted) == 1 and wanted[0].isdigit():
        count = int(wanted[0])
        if not 0 < count <= len(edits):
            raise BenchmarkError(f"{count} edits wanted, but the benchmark has 1 to {len(edits)}")
        return [edits[i * len(edits) // count] for i in range(count)]
    chosen = set()
    for name in wanted:
        found = [e for e in edits if name.removesuffix(".png") == e.name or name == e.picture.name]
        if not found:
            raise BenchmarkError(
                f"no edit is called '{name}'; edits have names such as '{edits[0].name}', "
                f"photographs such as '{edits[0].picture.name}'"
            )
        chosen.update(found)
    return [edit for edit in edits if edit in chosen]
