"""Where edits lie: the folder ``imagic`` that Imagic Save Edit fills and Imagic Load Edit lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths

from .errors import BadInputError

FOLDER, DEFAULT_NAME = "imagic", "edit"
MAX_NAME = 200
"""Bytes of UTF-8; file systems take 255, of which the number and the ending take some."""

NOT_ON_WINDOWS = '<>:"|?*'
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(1, 10))}


def edit_files() -> dict[str, Path]:
    """Name in the list -> file: ``imagic`` in the output folder, and in the models folders."""
    output = Path(folder_paths.get_output_directory())
    found = {listed(file): file for file in _in(output / FOLDER)}
    # A user may name more folders in extra_model_paths.yaml.
    extra, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], None))
    for folder in dict.fromkeys(map(Path, [*extra, Path(folder_paths.models_dir, FOLDER)])):
        for file in _in(folder):
            found.setdefault(file.relative_to(folder).as_posix(), file)
    return found


def _in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.safetensors") if p.is_file() and p.name[0] != ".")


def listed(file: Path) -> str:
    """The name in the list of a file in the output folder."""
    output = Path(folder_paths.get_output_directory())
    return f"{file.relative_to(output).as_posix()} [output]"


def place(prefix: str) -> str:
    """A prefix as typed -> the same below ``imagic``: `dog`, `imagic/dog` -> `imagic/dog`.

    Raises:
        BadInputError: some system cannot have a file of that name, it leaves the folder, or the
            list would not show it.
    """
    path = prefix.strip().replace("\\", "/")
    if path.startswith("/"):
        raise BadInputError(f"{prefix!r:.200} is a place outside ComfyUI's output folder")
    *folders, name = path.split("/")
    folders = [folder for folder in folders if folder not in ("", ".")]
    if folders and folders[0].casefold() == FOLDER:
        del folders[0]
    parts = [*folders, name or DEFAULT_NAME]
    for part in parts:
        if fault := _fault(part):
            raise BadInputError(f"{prefix!r:.200} has {part!r:.200}, {fault}")
    return "/".join([FOLDER, *parts])


def _fault(part: str) -> str | None:
    if not part.isprintable() or any(character in NOT_ON_WINDOWS for character in part):
        return f"but none of {' '.join(NOT_ON_WINDOWS)} and no invisible character can be in a name"
    if part.split(".")[0].strip().upper() in DEVICES:
        return "which Windows keeps for a device"
    if part.startswith("."):
        return "which begins with a dot, so that it is hidden or leads elsewhere"
    if part.endswith((".", " ")):
        return "whose end Windows cuts off"
    if len(part.encode()) > MAX_NAME:
        return f"which has {len(part.encode())} bytes, more than {MAX_NAME}"
    return None


@contextmanager
def new_file(placed: str) -> Iterator[Path]:
    """A file of a name that none has yet, also not in another server; gone if writing it fails.

    Args:
        placed: from ``place``.

    Raises:
        OSError: the folder cannot be written.
    """
    folder, name, counter, *_ = folder_paths.get_save_image_path(
        placed, folder_paths.get_output_directory()
    )
    while True:
        path = Path(folder, f"{name}_{counter:05}_.safetensors")
        try:
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            counter += 1
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
