"""The pack's nodes in this process, and a model for them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from families import kinds
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


@pytest.fixture(scope="module")
def model(narrow_checkpoint: Path) -> Any:
    """MODEL of the narrow checkpoint."""
    return given.load(narrow_checkpoint)
