"""Files that the nodes write, also for a hostile workflow: only in ComfyUI's own folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from host import given

WRITES = {
    "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate",
    "os.chmod", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
NAMES = [
    "imagic/edit", "../evil", "../../evil/x", "/tmp/evil", "..\\..\\evil", "C:\\evil",
    "imagic/../../e", "imagic/\0evil", "~/evil",
    "$HOME/evil", "%TEMP%/evil", "imagic/" + "../" * 30 + "etc/evil",
    "imagic/" + "a/" * 500 + "b", "\ud800", "imagic/.hidden", "CON", "",
]  # fmt: skip


class Watch:
    """Hears of every change of the file system that Python code makes; a hook cannot be removed."""

    def __init__(self) -> None:
        self.written: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.written is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not writes and not (mode and set(mode) & set("wax+")):
                return
            paths = [path]
        elif event in WRITES:
            paths = [one for one in arguments[:2] if isinstance(one, str | bytes | os.PathLike)]
        else:
            return
        self.written += [os.path.abspath(os.fsdecode(p)) for p in paths if not isinstance(p, int)]

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.written = written = []
        try:
            yield written
        finally:
            self.written = None


WATCH = Watch()


@pytest.fixture
def folders(comfy, tmp_path, monkeypatch) -> dict[str, Path]:
    """ComfyUI's own folders, each in a place of its own."""
    import folder_paths

    made = {name: tmp_path / name for name in ("output", "temp", "user", "models")}
    for name, folder in made.items():
        folder.mkdir()
        attribute = "models_dir" if name == "models" else f"{name}_directory"
        monkeypatch.setattr(folder_paths, attribute, str(folder))
    return made


def outside(written: list[str], folders: dict[str, Path]) -> list[str]:
    own = [str(folder) + os.sep for folder in folders.values()]
    return [
        path
        for path in written
        if not any(f"{path}{os.sep}".startswith(folder) for folder in own)
        and not path.endswith(".pyc") and "__pycache__" not in path and path != os.devnull
    ]  # fmt: skip


def test_the_watch_sees_what_is_written(folders, tmp_path):
    with WATCH.watching() as written:
        (tmp_path / "evil").write_text("x")
        (folders["output"] / "good").touch(exist_ok=False)
        (tmp_path / "evil").rename(tmp_path / "worse")
    found = outside(written, folders)
    assert found == [str(tmp_path / "evil"), str(tmp_path / "evil"), str(tmp_path / "worse")]
    assert len(written) == 4


def test_nothing_is_written_outside_the_hosts_folders(nodes, model, folders, tmp_path):
    target, latent = given.conditioning(), given.latent()
    picture = [torch.rand(1, 32, 32, 3) for _ in range(3)]
    with WATCH.watching() as written:
        optimized, loss = nodes.optimize(model, target, latent, 1, 1e-2, 0)
        _, lora, _ = nodes.finetune(model, optimized, latent, "lora", 1, 4e-2, 0, rank=1)
        nodes.interpolate(target, optimized, 0.5)
        nodes.call("ImagicEtaSweep", target, optimized, 0.0, 1.0, 3)
        nodes.call("ImagicProjectConditioning", target, optimized, 1.0, 1.0)
        nodes.call("ImagicFinetuneStrength", model, lora, 1.0, 1.0, 1.0)
        nodes.call("ImagicContactSheet", picture, [0.0, 0.5, 1.0])
        nodes.call("ImagicScoreEdits", picture, picture[:1], [0.0, 0.5, 1.0])
        for prefix in NAMES:
            told = nodes.call("ImagicSaveEdit", model, optimized, target, lora, prefix)[3]
            if not told.startswith("Not saved"):
                nodes.call("ImagicLoadEdit", model, told)
    assert written and outside(written, folders) == []
    # What is not written by Python code, such as safetensors' own, is where Python made room.
    assert sorted(os.listdir(tmp_path)) == ["models", "output", "temp", "user"]
    saved = [p for p in folders["output"].rglob("*") if p.is_file()]
    assert saved and all(p.suffix == ".safetensors" and p.name[0] != "." for p in saved)
    assert {p.relative_to(folders["output"]).parts[0] for p in saved} == {"imagic"}


@pytest.mark.parametrize("name", [*NAMES, "imagic/../../secret.safetensors [output]", "{secret}"])
def test_nothing_is_read_elsewhere(nodes, model, folders, tmp_path, name, monkeypatch):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    monkeypatch.setattr(nodes.module.imagic_core.edit_file, "read", lambda p: pytest.fail(str(p)))
    with pytest.raises(ValueError, match="^Imagic Load Edit: 'edit' (has no file|names) "):
        nodes.call("ImagicLoadEdit", model, name.format(secret=secret))
