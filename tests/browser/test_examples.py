"""Every example workflow dropped on the real front end; those of one SD 1.x checkpoint also run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from examples.make_workflows import with_own_ids
from examples.parts import SD15
from examples.prompts import (
    BLUEPRINT_FOLDER,
    FOLDER,
    QUICK,
    file_of,
    models_of,
    saved_pictures,
)
from examples.workflows import BLUEPRINTS, TITLES, WORKFLOWS
from machine.host_process import Server
from PIL import Image
from talk.api import Prompt
from talk.client import Client
from talk.editor import Editor
from talk.workflow import to_prompt

EXAMPLES = list(WORKFLOWS)
# The others run in tests/examples, with models that take longer to make.
RUN_HERE = [
    name
    for name in EXAMPLES
    if models_of(name) == {("checkpoints", SD15["name"])} and name != "imagic_reuse"
]
TRAININGS = ("ImagicOptimizeEmbedding", "ImagicFinetuneModel")
SHOWING = ("ImagicContactSheet", "ImagicScoreEdits")
SHOWN = """(id) => {
    app.canvas.draw(true, true)
    return app.graph.getNodeById(id).imgs?.some((one) => one.complete && one.naturalWidth)
}"""
TOLD = """([id, line]) =>
    app.graph.getNodeById(id).widgets.some((one) => `${one.value}`.startsWith(line))"""


def test_every_example_is_described_and_has_a_picture() -> None:
    described = sorted(TITLES.values())
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == described
    assert sorted(file.stem for file in FOLDER.glob("*.jpg")) == described


@pytest.mark.parametrize("name", EXAMPLES)
def test_dropped_example_is_complete(editor: Editor, name: str) -> None:
    editor.drop(file_of(name))
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
            titles: app.graph._nodes.filter((n) => n.title !== n.constructor.title)
                .map((n) => n.title),
        })"""
    )
    assert state["unknown"] == []
    text = file_of(name).read_text("utf-8")
    named = {node["title"] for node in WORKFLOWS[name]().nodes if node["title"]}
    assert set(state["titles"]) == named
    assert "Your photograph" in named
    if any(node["type"] == "CLIPTextEncode" for node in json.loads(text)["nodes"]):
        assert named >= {"Your sentence", "What to keep out"}
    assert [link for link, whole in state["links"] if not whole] == []
    written = json.loads(text)
    assert len(state["links"]) == len(written["links"]) > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_what_its_description_builds(editor: Editor, name: str) -> None:
    editor.drop(file_of(name))
    dropped = editor.prompt()
    editor.build(WORKFLOWS[name]().description(name))
    # Else: python tests/examples/make_workflows.py
    assert dropped == editor.prompt()


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_is_what_its_description_builds(editor: Editor, name: str) -> None:
    if editor.version >= (1, 40):
        pytest.skip("a box's widgets are kept otherwise, which older front ends could not read")
    built = with_own_ids(editor.build(BLUEPRINTS[name]().description(name)), name)
    # Else: python tests/examples/make_workflows.py
    assert built + "\n" == (BLUEPRINT_FOLDER / f"{name}.json").read_text("utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_our_conversion_is_the_front_ends(editor: Editor, client: Client, name: str) -> None:
    editor.drop(file_of(name))
    known = client.get("/object_info")

    def told(prompt: Prompt) -> dict[str, Any]:
        return {key: (node["class_type"], inputs_known(node)) for key, node in prompt.items()}

    def inputs_known(node: dict[str, Any]) -> dict[str, Any]:
        # Some nodes have widgets of the front end's own, of which the server knows nothing.
        names = set().union(*known[node["class_type"]]["input"].values())
        return {name: value for name, value in node["inputs"].items() if name in names}

    ours = to_prompt(json.loads(file_of(name).read_text("utf-8")), known)
    assert told(ours) == told(editor.prompt())


def drop_quick(editor: Editor, name: str) -> None:
    """Drop an example and make it small."""
    editor.drop(file_of(name))
    for kind, widgets in QUICK.items():
        for node in editor.find_all(kind):
            for name, value in widgets.items():
                editor.set(node, name, value)


@pytest.mark.parametrize("name", RUN_HERE)
def test_example_runs_to_a_saved_picture(
    editor: Editor, stocked: Server, client: Client, name: str
) -> None:
    # What another example has left in the cache would not run again.
    client.post("/free", {"free_memory": True})
    # None is removed between tests: the editor may still be fetching the last one.
    before = saved_pictures(stocked.base)
    drop_quick(editor, name)
    heard = editor.run()
    assert heard.executed == set(editor.prompt())
    trained = [node for kind in TRAININGS for node in editor.find_all(kind)]
    assert heard.previewed >= {str(node) for node in trained}
    for node in (node for kind in SHOWING for node in editor.find_all(kind)):
        editor.page.wait_for_function(SHOWN, arg=node, timeout=20_000)
    pictures = saved_pictures(stocked.base) - before
    assert pictures
    for saved in pictures:
        with Image.open(saved) as picture:
            assert picture.width > picture.height > 64
            written = json.loads(picture.info["prompt"])
        assert {node: one["inputs"] for node, one in written.items()} == {
            node: one["inputs"] for node, one in editor.prompt().items()
        }


def test_another_eta_does_not_train_again(editor: Editor, stocked: Server) -> None:
    drop_quick(editor, "imagic_edit")
    pictures, seen = set(), saved_pictures(stocked.base)
    for eta in (0.1, 0.9):
        editor.set(editor.find("ImagicInterpolateConditioning"), "eta", eta)
        heard = editor.run()
        (saved,) = saved_pictures(stocked.base) - seen
        seen.add(saved)
        with Image.open(saved) as picture:
            pictures.add(picture.tobytes())
    kinds = {editor.prompt()[node]["class_type"] for node in heard.executed}
    assert kinds == {"ImagicInterpolateConditioning", "KSampler", "VAEDecode", "SaveImage"}
    assert not heard.previewed & {str(editor.find(kind)) for kind in TRAININGS}
    assert len(pictures) == 2


def test_a_node_says_how_far_it_is_and_that_it_learned_before(
    editor: Editor, client: Client
) -> None:
    drop_quick(editor, "imagic_edit")
    node = editor.find(TRAININGS[0])
    editor.set(node, "keep", True)
    editor.set(node, "seed", 4242)
    saved = editor.prompt()
    for line in ("step 2 of 2, memory: ", "learned before, in 2 steps"):
        client.post("/free", {"free_memory": True})
        editor.run()
        editor.page.wait_for_function(TOLD, arg=[node, line], timeout=20_000)
    assert editor.prompt() == saved, "the line is no widget of the workflow's"
