"""Every example as it opens: what can be read, and where the nodes stand, in both renderings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from examples.prompts import file_of
from examples.workflows import WORKFLOWS
from talk.editor import Editor

BOXES = """() => {
    const { scale } = app.canvas.ds
    return app.graph._nodes.map((node) => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`)
        const drawn = element?.getBoundingClientRect()
        const [x, y] = node.pos
        const box = drawn
            ? [drawn.left, drawn.top, drawn.right, drawn.bottom].map((at) => at / scale)
            : [x, y - LiteGraph.NODE_TITLE_HEIGHT, x + node.size[0], y + node.size[1]]
        return { title: `${node.title} (${node.id})`, vue: !!drawn, box }
    })
}"""
NOTES = (
    """() => app.graph._nodes.filter((one) => one.type === 'MarkdownNote').map((one) => one.id)"""
)
# A canvas shows the text of a note only while it is in view.
LOOK_AT = """(id) => {
    const [x, y] = app.graph.getNodeById(id).pos
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [300 - x, 300 - y]
    app.canvas.draw(true, true)
}"""
TEXT_OF = """(id) => {
    const note = app.graph.getNodeById(id).widgets[0].element
    const parts = [note, ...note.querySelectorAll('*')].filter((one) => one.clientHeight > 20)
    const hidden = Math.max(0, ...parts.map((one) => one.scrollHeight - one.clientHeight))
    return { text: note.innerText, seen: parts.length > 0, hidden }
}"""


@pytest.fixture(scope="module", params=["classic", "vue"])
def rendering(request: pytest.FixtureRequest, editor: Editor) -> Iterator[str]:
    """Nodes drawn on the canvas, or as elements of the page."""
    if request.param == "vue":
        editor.skip_before((1, 49), "moves nodes that are elements out of their places")
    editor.draw_nodes_as_elements(request.param == "vue")
    yield request.param
    editor.draw_nodes_as_elements(False)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nodes_stand_20_pixels_apart_and_notes_fit(
    editor: Editor, rendering: str, name: str
) -> None:
    editor.drop(file_of(name))
    editor.page.wait_for_timeout(1_000)  # the page's own layout moves boxes for a few frames
    boxes = editor.evaluate(BOXES)
    assert {one["vue"] for one in boxes} == {rendering == "vue"}
    for one, other in combinations(boxes, 2):
        assert apart(one["box"], other["box"]) >= 20, (one, other)
    if rendering == "vue":
        return  # its notes grow with their text
    for note in editor.evaluate(NOTES):
        editor.evaluate(LOOK_AT, note)
        editor.page.wait_for_timeout(300)
        shown = editor.evaluate(TEXT_OF, note)
        assert shown["seen"] and shown["hidden"] <= 1, shown


def apart(one: list[float], other: list[float]) -> float:
    """How far two boxes are from each other; negative where they overlap."""
    left, top, right, bottom = one
    left2, top2, right2, bottom2 = other
    return round(max(left2 - right, left - right2, top2 - bottom, top - bottom2), 1)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_opens_large_enough_to_read(name: str) -> None:
    groups = [group["bounding"] for group in workflow(name)["groups"]]
    width = max(x + w for x, _, w, _ in groups) - min(x for x, _, w, _ in groups)
    assert width <= (2_500 if name in ("imagic_edit", "imagic_app") else 3_600)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_links_lead_from_left_to_right(name: str) -> None:
    written = workflow(name)
    left = {node["id"]: node["pos"][0] for node in written["nodes"]}
    back = [link for link in written["links"] if left[link[1]] > left[link[3]]]
    assert back == []


def workflow(name: str) -> dict[str, Any]:
    return json.loads(file_of(name).read_text("utf-8"))
