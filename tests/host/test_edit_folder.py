"""Where edits are saved: names that every system has, each its own, where they are listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from machine.environment import REPOSITORY
from machine.host_process import Server
from talk.api import PromptRejected
from talk.client import Client


@pytest.fixture
def folder(pack: ModuleType) -> ModuleType:
    return pack.nodes.edit_folder


@pytest.mark.parametrize(
    ("prefix", "placed"),
    [
        ("imagic/edit", "imagic/edit"),
        ("imagic/dogs/rex", "imagic/dogs/rex"),
        ("dog", "imagic/dog"),
        ("", "imagic/edit"),
        ("  ", "imagic/edit"),
        ("imagic", "imagic/imagic"),
        ("imagic/", "imagic/edit"),
        ("Imagic/Edit", "imagic/Edit"),
        ("IMAGIC\\dogs\\rex", "imagic/dogs/rex"),
        ("./imagic//edit", "imagic/edit"),
        ("dogs/", "imagic/dogs/edit"),
        ("%year%-%month%/einSüßer Hund", "imagic/%year%-%month%/einSüßer Hund"),
        ("CONTEST/nullable", "imagic/CONTEST/nullable"),
    ],
)
def test_every_prefix_is_placed_where_edits_are_listed(folder, prefix, placed):
    assert folder.place(prefix) == placed


@pytest.mark.parametrize(
    "prefix",
    [
        *(f"imagic/a{character}b" for character in '<>:"|?*\n\0\u202e\ud800'),
        "%date:yyyy-MM-dd%",
        *("con", "imagic/NUL", "imagic/com1.x", "lpt9/edit", "aux .x/edit"),
        *("../evil", "imagic/../../evil", "..", "imagic/.x", ".hidden/x", "..\\evil"),
        *("/etc/edit", "\\\\server\\share", "C:\\edit", "C:/edit"),
        *("imagic/dog.", "imagic/dog /x", "imagic/" + "a" * 201, "imagic/" + "ü" * 101),
    ],
)
def test_a_name_that_cannot_be_is_refused(pack, folder, prefix):
    with pytest.raises(ValueError, match="is a place|has"):
        folder.place(prefix)
    told = pack.nodes.save_edit.ImagicSaveEdit.validate_inputs(filename_prefix=prefix)
    assert told.startswith("Imagic Save Edit: 'filename_prefix' ") and "imagic/edit" in told


def test_a_refused_name_is_known_before_anything_runs(server: Server, client: Client):
    prompt = {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {
            "ckpt_name": "tiny.safetensors"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a dog"}},
        "image": {"class_type": "EmptyLatentImage", "inputs": {
            "width": 64, "height": 64, "batch_size": 1}},
        "b": {"class_type": "ImagicFinetuneModel", "inputs": {
            "model": ["load", 0], "optimized": ["text", 0], "image": ["image", 0],
            "method": "lora", "steps": 1, "learning_rate": 0.1, "seed": 0}},
        "save": {"class_type": "ImagicSaveEdit", "inputs": {
            "model": ["load", 0], "optimized": ["text", 0], "target": ["text", 0],
            "lora": ["b", 1], "filename_prefix": "imagic/what?"}},
    }  # fmt: skip
    with pytest.raises(PromptRejected, match=r"Imagic Save Edit: 'filename_prefix' .*what\?.* has"):
        client.queue(prompt)


@pytest.fixture
def output(comfy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    output = tmp_path / "output"
    output.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(output))
    return output


def test_every_placed_name_is_listed(folder, output):
    for prefix in ("dog", "imagic/", "Imagic/Edit", "", "dogs\\rex", "%year%/x"):
        with folder.new_file(folder.place(prefix)) as file:
            file.write_bytes(b"edit")
        assert folder.edit_files()[folder.listed(file)] == file


def test_a_failed_write_leaves_no_file(folder, output):
    with pytest.raises(OSError, match="full"), folder.new_file("imagic/edit"):
        raise OSError("full")
    assert [p for p in output.rglob("*") if p.is_file()] == []


SAVER = """
import pathlib, sys, types
comfyui, pack, output, go = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)
module = types.ModuleType("pack")
module.__path__ = [pack]
sys.modules["pack"] = module
import folder_paths
folder_paths.output_directory = output
from pack.edit_folder import new_file
print("ready", flush=True)
while not pathlib.Path(go).exists():
    pass
for _ in range(50):
    with new_file("imagic/edit") as file:
        file.write_bytes(b"edit")
    print(file, flush=True)
"""


def test_two_servers_never_take_the_same_name(comfyui_folder, tmp_path):
    output, go = tmp_path / "output", tmp_path / "go"
    output.mkdir()
    command = [sys.executable, "-c", SAVER, comfyui_folder, REPOSITORY / "nodes", output, go]
    servers = [
        subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert all(server.stdout and server.stdout.readline() == "ready\n" for server in servers)
    go.touch()
    told = [line for server in servers for line in server.communicate(timeout=120)[0].split()]
    assert [server.returncode for server in servers] == [0, 0]
    assert len(told) == len(set(told)) == 100
    assert sorted(told) == sorted(map(str, (output / "imagic").iterdir()))
