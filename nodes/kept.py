"""What trainings have learned, kept in ComfyUI's user folder, so that nothing is trained twice.

Of each training there are at most two files, under a hash of all that its result depends on:
``HASH.learned.safetensors`` has the result, ``HASH.steps.safetensors`` the training itself, for
as long as it is not done. Only what is whole is read: each has a checksum of its own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..imagic_core.checkpoint import Checkpoint, Keeper, Training
from . import comfy_host

MAX_FILES, MAX_BYTES = 100, 16 * 2**30
SHARE_OF_DISK = 4  # all of it takes at most one part in so many of what is free
SECONDS_BETWEEN, SHARE_OF_TIME = 5.0, 0.02
"""A training is kept so often, and more seldom where that would take a larger share of the time."""

UNFINISHED_WRITE = 3600.0  # seconds after which a file that is being written is nobody's


@dataclass(frozen=True)
class Learned:
    """What a stage has learned.

    Attributes:
        tensors: name -> tensor on the CPU.
        losses: of each step.
        left: what is left of the sentence, as a share (``imagic_core/left.py``); None if not known.
    """

    tensors: Mapping[str, Tensor]
    losses: list[float]
    left: float | None = None


class NotKeptError(Exception):
    """It could not be written; the message says why."""


def folder() -> Path:
    """Where it lies: in no user's own folder, so that no one can load it over the network."""
    return Path(folder_paths.get_system_user_directory("imagic"), "learned")


class Shelf:
    """The place of one training."""

    def __init__(self, name: str) -> None:
        """Take the hash of all that its result depends on."""
        self.learned = folder() / f"{name}.learned.safetensors"
        self.steps = folder() / f"{name}.steps.safetensors"

    def result(self) -> Learned | None:
        """What was learned, if the training was ever done."""
        found = read(self.learned)
        if found is None:
            return None
        return Learned(found.tensors, list(found.about["losses"]), found.about["left"])

    def put(self, learned: Learned) -> None:
        """Keep the result; the training itself is no longer needed. Warns where it cannot."""
        about = {"losses": learned.losses, "left": learned.left}
        if kept(self.learned, Checkpoint(learned.tensors, about)):
            with suppress(OSError):
                self.steps.unlink(missing_ok=True)


@contextmanager
def keeping(
    shelf: Shelf | None, denoiser: comfy_host.HostDenoiser, changes: comfy_host.Changes
) -> Iterator[Keeper]:
    """What keeps a training on its shelf, also where it is broken off in here; nothing without."""
    if shelf is None:
        yield Keeper()
        return
    in_place = sum(getattr(change, "is_in_place", False) for change in changes.values())
    keeper = FileKeeper(shelf.steps, denoiser, in_place)
    try:
        yield keeper
    except BaseException:
        keeper.broken_off()
        raise


class FileKeeper(Keeper):
    """Keeps a training in a file as it goes on."""

    def __init__(self, file: Path, denoiser: comfy_host.HostDenoiser, in_place: int) -> None:
        """Take ``Shelf.steps``, and the denoiser, of which some count their passes.

        Of ``in_place`` weights the changes are trained as the weights that they make. With idle
        weights in main memory these are others, and such a training begins anew.
        """
        self.file, self.denoiser, self.in_place = file, denoiser, in_place
        self.training: Training | None = None
        self.kept_at = 0
        self.last, self.cost = time.monotonic(), 0.0

    def begin(self, training: Training) -> None:
        """Give the training what was kept of it, if that is whole."""
        self.training = training
        found = read(self.file)
        if found is not None:
            try:
                passes, generator = found.about["passes"], found.tensors["host generator"]
                if found.about["in place"] != self.in_place:
                    raise ValueError("its changes are kept in another form")
                training.give(found)
                self.denoiser.passes = passes
                torch.set_rng_state(generator)
                self.kept_at = len(training.losses)
                comfy_host.LOGGER.info("goes on after step %d, which was kept", self.kept_at)
            except (ValueError, KeyError) as error:
                comfy_host.LOGGER.warning("%s is passed over: %s", self.file.name, error)
        self._note()

    def stepped(self, training: Training) -> None:
        """Keep it from time to time."""
        self._note()
        if time.monotonic() - self.last >= max(SECONDS_BETWEEN, self.cost / SHARE_OF_TIME):
            self._keep(training)

    def broken_off(self) -> None:
        """Keep it as it is now, unless the optimiser has left a step half done."""
        training = self.training
        if training and training.is_whole and len(training.losses) > self.kept_at:
            self._keep(training)

    def _note(self) -> None:
        self.passes, self.random = self.denoiser.passes, torch.get_rng_state()

    def _keep(self, training: Training) -> None:
        began = time.monotonic()
        now = training.take()
        more = {"host generator": self.random}, {"passes": self.passes, "in place": self.in_place}
        done = kept(self.file, Checkpoint({**now.tensors, **more[0]}, {**now.about, **more[1]}))
        self.last = time.monotonic()
        # What cannot be written is tried once more at the end.
        self.cost = self.last - began if done else math.inf
        if done:
            self.kept_at = len(training.losses)


# ---- files ----------------------------------------------------------------------------------


def read(file: Path) -> Checkpoint | None:
    """What a file of ``kept`` holds; None where there is none, or it is not as it was written."""
    try:
        with torch.inference_mode(False), safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            # Clones: the tensors would be windows into a file that may go.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
        if about["checksum"] != checksum(tensors):
            raise ValueError("its numbers are not those that were written")
        os.utime(file)  # the oldest go first
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        comfy_host.LOGGER.warning("%s is passed over: %s", file.name, error)
        return None
    return Checkpoint(tensors, about)


def kept(file: Path, value: Checkpoint) -> bool:
    """Write a file, whole or not at all; warns and returns False where that cannot be done."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        check_memory(sum(t.nbytes for t in value.tensors.values()))
        # Clones where they share memory, which safetensors refuses.
        tensors = {name: t.detach().cpu().contiguous() for name, t in value.tensors.items()}
        if len({t.untyped_storage().data_ptr() for t in tensors.values()}) < len(tensors):
            tensors = {name: t.clone() for name, t in tensors.items()}
        about = {**value.about, "checksum": checksum(tensors)}
        file.parent.mkdir(parents=True, exist_ok=True)
        make_room(file, sum(t.nbytes for t in tensors.values()))
        save_file(tensors, part, {"about": json.dumps(about)})
        os.replace(part, file)
    except (NotKeptError, OSError, SafetensorError, RuntimeError, MemoryError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        comfy_host.LOGGER.warning(
            "what is being learned is not kept, and cannot go on after a stop: %s", error
        )
        return False
    return True


def check_memory(size: int) -> None:
    """Refuse to write ``size`` bytes where the copies for it would take what others need.

    Raises:
        NotKeptError: there is too little memory.
    """
    free = psutil.virtual_memory().available
    if 2 * size > free:
        raise NotKeptError(
            f"to write its {size / 2**30:.1f} GB takes twice the memory, of which "
            f"{free / 2**30:.1f} GB are free"
        )


def make_room(file: Path, size: int) -> None:
    """Let the oldest files go until one of ``size`` bytes may come to lie at ``file``.

    Raises:
        NotKeptError: it is too large by itself.
    """
    others = []
    for one in file.parent.iterdir():
        with suppress(OSError):  # another server may have let it go
            status = one.stat()
            if one.suffix == ".part" and time.time() - status.st_mtime > UNFINISHED_WRITE:
                one.unlink()
            elif one.suffix == ".safetensors" and one != file:
                others.append((status.st_mtime, status.st_size, one))
    taken = sum(other[1] for other in others)
    free = shutil.disk_usage(file.parent).free
    bound = min(MAX_BYTES, (free + taken) // SHARE_OF_DISK)
    if size > bound:
        raise NotKeptError(
            f"it takes {size / 2**30:.1f} GB, of which there may be {bound / 2**30:.1f} GB"
        )
    others.sort()
    while others and (taken + size > bound or len(others) >= MAX_FILES):
        _, gone, oldest = others.pop(0)
        oldest.unlink(missing_ok=True)
        taken -= gone


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of all their bytes, in the order of their names."""
    found = 0
    for name in sorted(tensors):
        bits = tensors[name].contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(bits.numpy().data, zlib.crc32(name.encode(), found))
    return found
