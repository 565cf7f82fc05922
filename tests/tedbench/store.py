"""The output folder: what is done stays done, and nothing is ever half written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tedbench.benchmark import Task


def write(file: Path, content: bytes) -> None:
    """Write a file so that it has either its old content or its new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{os.getpid()}-{threading.get_ident()}.half")
    half.write_bytes(content)
    os.replace(half, file)


def is_blank(picture: bytes) -> bool:
    """Whether a picture is of one colour: what is left of a sampling that ended in NaN."""
    with Image.open(io.BytesIO(picture)) as opened:
        return opened.convert("RGB").getcolors(1) is not None


class Store:
    """A run's pictures, with a record of each edit and method that is written last.

    Pictures are at `METHOD/SETTING/NAME.png`, records at `records/NAME/METHOD.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(self, name: str, method: str, setting: str) -> Path:
        """Where a picture lies; ``name`` is the edit's."""
        return self.folder / method / setting / f"{name}.png"

    def input(self, photograph: str) -> Path:
        """Where the photograph lies as the methods got it."""
        return self.folder / "inputs" / f"{photograph}.png"

    def record(self, name: str, method: str) -> dict[str, Any]:
        """What became of a method on an edit; empty where it has not ended."""
        return self._json(self.folder / "records" / name / f"{method}.json")

    def scores(self, name: str) -> dict[str, Any]:
        """The edit's scores; empty where there are none."""
        return self._json(self.folder / "scores" / f"{name}.json")

    def names(self) -> list[str]:
        """All edits with a record, by name."""
        return sorted(folder.name for folder in (self.folder / "records").glob("*"))

    def is_done(self, name: str, method: str, settings: Iterable[str]) -> bool:
        """Whether the record says so and all pictures are there."""
        return self.record(name, method).get("status") == "done" and all(
            self.picture(name, method, setting).is_file() for setting in settings
        )

    def keep(
        self, edit: Task, method: str, pictures: dict[str, bytes], seen: bytes, **about: Any
    ) -> None:
        """Write a method's pictures, and its record last.

        Args:
            edit: what was edited.
            method: by which method.
            pictures: encoded, by setting.
            seen: the photograph as the method got it, encoded.
            about: what else to note.
        """
        for setting, picture in pictures.items():
            write(self.picture(edit.name, method, setting), picture)
        write(self.input(edit.picture.name), seen)
        self._note(edit, method, status="done", **about)

    def fail(self, edit: Task, method: str, error: str, **about: Any) -> None:
        """Note that a method failed; the next run tries it again."""
        self._note(edit, method, status="failed", error=error, **about)

    def failures(self) -> list[tuple[str, str, str]]:
        """Name, method and error of all that failed."""
        found = []
        for file in sorted((self.folder / "records").glob("*/*.json")):
            record = self._json(file)
            if record.get("status") == "failed":
                found.append((file.parent.name, file.stem, record["error"]))
        return found

    def keep_scores(self, name: str, scores: dict[str, Any]) -> None:
        """Write an edit's scores."""
        write(self.folder / "scores" / f"{name}.json", json.dumps(scores, indent=1).encode())

    def pictures_of(
        self, name: str, settings: Mapping[str, Iterable[str]]
    ) -> list[tuple[str, str, str]]:
        """Method, setting and SHA-256 of an edit's pictures, of the methods that are done."""
        return [
            (method, setting, hashlib.sha256(self.picture(name, method, setting).read_bytes())
             .hexdigest())
            for method, of_method in settings.items()
            if self.is_done(name, method, of_method)
            for setting in of_method
        ]  # fmt: skip

    def _note(self, edit: Task, method: str, **record: Any) -> None:
        about = {"photograph": edit.picture.name, "text": edit.text, "source": edit.source}
        record = about | record
        file = self.folder / "records" / edit.name / f"{method}.json"
        write(file, json.dumps(record, indent=1).encode())

    @staticmethod
    def _json(file: Path) -> dict[str, Any]:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
