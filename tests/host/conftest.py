"""The pack's nodes in this process, and a model for them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from machine import imagic


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> imagic.Pack:
    """The nodes, called as ComfyUI's executor calls them."""
    return imagic.Pack(pack)


@pytest.fixture(scope="module")
def model(comfy: ModuleType, tiny_checkpoint: Path) -> Any:
    """MODEL of the tiny checkpoint."""
    return imagic.load(tiny_checkpoint)
