"""Every example workflow dropped on the real front end; those of one SD 1.x checkpoint also run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples.parts import SD15
from examples.prompts import FOLDER, QUICK, models_of
from examples.workflows import WORKFLOWS
from machine.host_process import Server
from PIL import Image
from talk.api import Prompt
from talk.client import Client
from talk.editor import Editor
from talk.workflow import to_prompt

EXAMPLES = sorted(FOLDER.glob("*.json"))
# The others run in tests/examples, with models that take longer to make.
RUN_HERE = [
    file
    for file in EXAMPLES
    if models_of(file.stem) == {("checkpoints", SD15["name"])} and file.stem != "imagic_reuse"
]
TRAININGS = ("ImagicOptimizeEmbedding", "ImagicFinetuneModel")


def test_every_example_is_described() -> None:
    assert [file.stem for file in EXAMPLES] == sorted(WORKFLOWS)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_dropped_example_is_complete(editor: Editor, file: Path) -> None:
    editor.drop(file)
    state = editor.evaluate(
        """() => ({
            unknown: app.graph._nodes.filter(
                (n) => n.has_errors || !LiteGraph.registered_node_types[n.type]
            ).map((n) => n.type),
            links: [...app.graph.links.values()].map((link) => {
                const from = app.graph.getNodeById(link.origin_id)?.outputs[link.origin_slot]
                const to = app.graph.getNodeById(link.target_id)?.inputs[link.target_slot]
                return [link.id, !!from?.links?.includes(link.id) && to?.link === link.id
                    && LiteGraph.isValidConnection(from.type, to.type)]
            }),
            titles: app.graph._nodes.map((n) => [n.constructor.title, n.title])
                .filter(([usual, title]) => title !== usual),
        })"""
    )
    assert state["unknown"] == []
    assert state["titles"] == []
    assert [link for link, whole in state["links"] if not whole] == []
    written = json.loads(file.read_text("utf-8"))
    assert len(state["links"]) == len(written["links"]) > 0


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_nodes_of_an_example_do_not_overlap(file: Path) -> None:
    workflow = json.loads(file.read_text("utf-8"))
    title = 30
    boxes = [
        (n["type"], n["pos"][0], n["pos"][1] - title, n["pos"][0] + n["size"][0],
         n["pos"][1] + n["size"][1])
        for n in workflow["nodes"]
    ]  # fmt: skip
    for i, (one, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[i + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{one} overlaps {other}"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_is_what_its_description_builds(editor: Editor, file: Path) -> None:
    editor.drop(file)
    dropped = editor.prompt()
    editor.build(WORKFLOWS[file.stem]().description(file.stem))
    # Else: python tests/examples/make_workflows.py
    assert dropped == editor.prompt()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_our_conversion_is_the_front_ends(editor: Editor, client: Client, file: Path) -> None:
    editor.drop(file)
    known = client.get("/object_info")

    def told(prompt: Prompt) -> dict[str, Any]:
        return {key: (node["class_type"], inputs_known(node)) for key, node in prompt.items()}

    def inputs_known(node: dict[str, Any]) -> dict[str, Any]:
        # Some nodes have widgets of the front end's own, of which the server knows nothing.
        names = set().union(*known[node["class_type"]]["input"].values())
        return {name: value for name, value in node["inputs"].items() if name in names}

    ours = to_prompt(json.loads(file.read_text("utf-8")), known)
    assert told(ours) == told(editor.prompt())


def drop_quick(editor: Editor, file: Path) -> None:
    """Drop an example and make it small."""
    editor.drop(file)
    for kind, widgets in QUICK.items():
        for node in editor.find_all(kind):
            for name, value in widgets.items():
                editor.set(node, name, value)


def saved_pictures(server: Server) -> set[Path]:
    # None is removed between tests: the editor may still be fetching the last one.
    return set((server.base / "output").glob("**/*.png"))


@pytest.mark.parametrize("file", RUN_HERE, ids=lambda file: file.stem)
def test_example_runs_to_a_saved_picture(
    editor: Editor, stocked: Server, client: Client, file: Path
) -> None:
    # What another example has left in the cache would not run again.
    client.post("/free", {"free_memory": True})
    before = saved_pictures(stocked)
    drop_quick(editor, file)
    heard = editor.run()
    assert heard.executed == set(editor.prompt())
    trained = [node for kind in TRAININGS for node in editor.find_all(kind)]
    assert heard.previewed >= {str(node) for node in trained}
    pictures = saved_pictures(stocked) - before
    assert pictures
    for saved in pictures:
        with Image.open(saved) as picture:
            assert picture.width > picture.height > 64
            written = json.loads(picture.info["prompt"])
        assert {node: one["inputs"] for node, one in written.items()} == {
            node: one["inputs"] for node, one in editor.prompt().items()
        }


def test_another_eta_does_not_train_again(editor: Editor, stocked: Server) -> None:
    drop_quick(editor, FOLDER / "imagic_edit.json")
    pictures, seen = set(), saved_pictures(stocked)
    for eta in (0.1, 0.9):
        editor.set(editor.find("ImagicInterpolateConditioning"), "eta", eta)
        heard = editor.run()
        (saved,) = saved_pictures(stocked) - seen
        seen.add(saved)
        with Image.open(saved) as picture:
            pictures.add(picture.tobytes())
    kinds = {editor.prompt()[node]["class_type"] for node in heard.executed}
    assert kinds == {"ImagicInterpolateConditioning", "KSampler", "VAEDecode", "SaveImage"}
    assert not heard.previewed & {str(editor.find(kind)) for kind in TRAININGS}
    assert len(pictures) == 2
