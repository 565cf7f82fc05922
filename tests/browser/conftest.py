"""Fixtures of the tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from examples.prompts import edit_file, put, stock
from examples.workflows import WORKFLOWS
from machine.host_process import Server
from talk.editor import Editor, open_editor


@pytest.fixture(scope="module")
def stocked(server: Server, narrow_checkpoint: Path) -> Server:
    """The server with a file for each that the example workflows name, so that none is missing."""
    stock(server.base, list(WORKFLOWS), narrow_checkpoint)
    put(narrow_checkpoint, edit_file(server.base))
    return server


@pytest.fixture(scope="module")
def editor(stocked: Server, chromium: str) -> Iterator[Editor]:
    with open_editor(chromium, stocked.url) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_complaint(editor: Editor) -> Iterator[None]:
    """No test may leave an error in the browser's console."""
    editor.errors.clear()
    yield
    assert editor.errors == []
