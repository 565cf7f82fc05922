"""The pack's nodes in this process, and a model for them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from families import kinds, tiny
from machine import imagic

from host import given


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> imagic.Pack:
    """The nodes, called as ComfyUI's executor calls them."""
    return imagic.Pack(pack)


@pytest.fixture(scope="module", params=list(kinds.FAMILIES))
def loaded(request: pytest.FixtureRequest, comfy: ModuleType, tmp_path_factory: Any) -> Any:
    """Each model family and its tiny MODEL."""
    return kinds.load(request.param, tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def narrow(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small Stable Diffusion 1.x for ``given.load``, untrained."""
    return tiny.build_narrow(tmp_path_factory.mktemp("narrow") / "narrow.safetensors")


@pytest.fixture(scope="module")
def model(narrow: Path) -> Any:
    """MODEL of it."""
    return given.load(narrow)
