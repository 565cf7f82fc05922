"""Fixtures of all tests: ComfyUI in this process, the pack as ComfyUI loads it, a real server."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from machine import in_process
from machine.environment import MADE, REPOSITORY, is_comfyui
from machine.host_process import Server, serve
from talk.client import Client

# The same examples each time, so that the suite ends alike on every machine. Others, and many:
# ``--hypothesis-profile=search``.
set_hypothesis_home_dir(MADE / "hypothesis")
common = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("same", common, max_examples=100, derandomize=True)
settings.register_profile("search", common, max_examples=4000)
settings.load_profile("same")


def pytest_configure() -> None:
    """Make ``imagic_core`` importable alone: the pack's root must not be on the path."""
    in_process.import_file("imagic_core", REPOSITORY / "imagic_core" / "__init__.py")


@pytest.fixture(scope="session")
def comfyui_folder() -> Path:
    """The ComfyUI that the tests run in; its Python is this process's own."""
    folder = Path(os.environ.get("COMFYUI_PATH", ""))
    assert is_comfyui(folder), "run the tests with: python tests/run.py [pytest arguments]"
    return folder


@pytest.fixture(scope="session")
def comfy(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """ComfyUI in this process, on the CPU, with its core nodes: the module ``comfy``."""
    return in_process.start(comfyui_folder, tmp_path_factory.mktemp("comfyui"))


def host_state() -> dict[str, object]:
    """Every name in every module of ComfyUI's that is loaded, and what it stands for."""
    own = ("comfy", "nodes", "execution", "server", "folder_paths", "latent_preview", "app")
    return {
        f"{module.__name__}.{name}": value
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").split(".")[0].split("_")[0] in own
        for name, value in vars(module).items()
    }


@pytest.fixture(scope="session")
def changed_by_loading() -> list[str]:
    """Names in ComfyUI that stand for something else since the pack was loaded; see ``pack``."""
    return []


@pytest.fixture(scope="session")
def pack(comfy: ModuleType, changed_by_loading: list[str]) -> ModuleType:
    """The pack as ComfyUI's loader made it, with ``pack.nodes`` and ``pack.imagic_core``."""
    importlib.import_module("latent_preview")
    before = host_state()
    module = in_process.load_pack()
    after = host_state()
    changed_by_loading += [name for name in before if after.get(name) is not before[name]]
    return module


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest network that is Stable Diffusion 1.x to ComfyUI, untrained."""
    from families.tiny import build_tiny

    file = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    build_tiny(file, seed=0)
    return file


@pytest.fixture(scope="session")
def x4_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The x4 upscaler of the miniature's world, which has learned to draw it."""
    from miniature.upscaler.checkpoint import build_x4

    return build_x4(tmp_path_factory.mktemp("checkpoints") / "x4.safetensors")


@pytest.fixture(scope="session")
def narrow_checkpoint(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same a fifth as wide, for what does not hang on the width; see ``tiny.build_narrow``."""
    from families.tiny import build_narrow

    return build_narrow(tmp_path_factory.mktemp("checkpoints") / "narrow.safetensors", seed=0)


@pytest.fixture(scope="session")
def server(comfyui_folder: Path, narrow_checkpoint: Path) -> Iterator[Server]:
    """A real server with the pack and the narrow checkpoint, one for all tests."""
    from families.tiny import NARROW_UNETS

    with serve(comfyui_folder, [narrow_checkpoint], more_packs=[NARROW_UNETS]) as running:
        yield running


@pytest.fixture(scope="session")
def small_models(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``models`` folder with every model family whole and tiny; see ``families.whole``."""
    from families.whole import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def families_server(comfyui_folder: Path, small_models: Path) -> Iterator[Server]:
    """A real server with the pack that can load ``small_models``, and no models of full size."""
    with serve(
        comfyui_folder,
        models=small_models,
        more_packs=[REPOSITORY / "tests/families/small_models"],
    ) as running:
        yield running


@pytest.fixture
def families_client(families_server: Server) -> Iterator[Client]:
    """A front end of its own, connected to the server of the model families."""
    with Client(families_server.url) as connected:
        yield connected


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A front end of its own, connected to the server."""
    with Client(server.url) as connected:
        yield connected


@pytest.fixture(scope="session")
def tedbench() -> Path:
    """TEdBench's photographs and prompts, which are not ours to pass on."""
    folder = Path(os.environ.get("TEDBENCH", REPOSITORY.parent / "shared" / "tedbench"))
    if not (folder / "originals").is_dir():
        pytest.skip(f"no TEdBench data at {folder}; set TEDBENCH to where it lies")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The Chromium or Chrome of this machine."""
    from talk.editor import find_chromium

    return find_chromium() or pytest.skip("no Chromium or Chrome on this machine")
