"""The demo's command line, terminal and sheet; its edit is tested with the workflow."""

from __future__ import annotations

import sys
from pathlib import Path

import demo
import numpy as np
import pytest
from PIL import Image
from talk.client import Event

from examples.demo_edit import Terminal
from examples.sheet import TILE, contact_sheet


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--checkpoint", "FILE"], "--checkpoint needs --image and --prompt"),
        (["--image", "FILE"], "--image and --prompt belong together"),
        (["--image", "gone.png", "--prompt", "a dog"], "gone.png is not a file"),
    ],
)
def test_incomplete_command_is_refused_at_once(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.touch()
    words = [str(file) if word == "FILE" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    with pytest.raises(SystemExit):
        demo.arguments()
    assert complaint in capsys.readouterr().err


def test_sheet_shows_every_picture_in_order_and_in_the_inputs_shape() -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    sizes = [(40, 20), (128, 64), (64, 64), (8, 8), (300, 150)]
    tiles = [
        (f"eta {index}", Image.new("RGB", size, colour))
        for index, (size, colour) in enumerate(zip(sizes, colours, strict=True))
    ]
    sheet = contact_sheet(tiles, "a sentence")
    counts = {colour: n for n, colour in sheet.getcolors(sheet.width * sheet.height)}
    painted = [colour for colour, n in counts.items() if n == TILE * TILE // 2]
    assert len(painted) == len(colours)

    def found(colour: str) -> tuple[int, int]:
        wanted = np.asarray(Image.new("RGB", (1, 1), colour))
        rows, columns = np.nonzero((np.asarray(sheet) == wanted).all(-1))
        return rows[0], columns[0]

    corners = [found(colour) for colour in colours]
    assert corners == sorted(corners)
    assert len({row for row, _ in corners}) == 2, "four in a row"


def test_terminal_names_the_node_and_tells_each_tenth_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal({"7": "KSampler"})
    terminal(Event("executing", {"node": "7"}))
    for step in range(1, 41):
        terminal(Event("progress", {"node": "7", "value": step, "max": 40}))
        terminal(Event("progress", {"node": "other", "value": step, "max": 40}))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["KSampler", "step", str(step), "of", "40"] for step in (1, *range(4, 41, 4))
    ]
