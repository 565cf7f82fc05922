"""The real front end in a browser: our nodes, and every example workflow dropped and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.editor import Editor, open_editor
from browser.workflows import SD15, WORKFLOWS
from client import Client
from environment import REPOSITORY
from host_process import Server, put_file
from PIL import Image
from workflow import to_prompt

EXAMPLES = sorted((REPOSITORY / "example_workflows").glob("*.json"))
LANGUAGES = sorted(folder.name for folder in (REPOSITORY / "locales").iterdir())
STAGES = ("ImagicOptimizeEmbedding", "ImagicFinetuneModel", "ImagicInterpolateConditioning")
# A few latent pixels and two steps: what is asked here is that it runs, not what it draws.
QUICK = {
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "ImagicOptimizeEmbedding": {"steps": 2, "batch_size": 1},
    "ImagicFinetuneModel": {"steps": 2, "batch_size": 1},
    "KSampler": {"steps": 2},
}


@pytest.fixture(scope="module")
def stocked(server: Server, tiny_checkpoint: Path) -> Server:
    """The server with a file for each that the example workflows name, so that none is missing."""
    checkpoint = server.base / "models/checkpoints" / SD15["name"]
    if not checkpoint.exists():
        put_file(tiny_checkpoint, checkpoint)
    Image.effect_noise((150, 100), 60).convert("RGB").save(server.base / "input/example.png")
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


def test_the_pack_brings_no_error_to_the_console(editor: Editor) -> None:
    assert editor.errors_at_start == []


def test_our_nodes_have_category_and_tooltips(editor: Editor) -> None:
    shown = editor.evaluate(
        """() => Object.values(LiteGraph.registered_node_types)
            .map((type) => type.nodeData)
            .filter((data) => data?.python_module?.endsWith('Imagic'))
            .map((data) => ({
                name: data.name, category: data.category, description: data.description,
                slots: [...Object.values(data.inputs), ...Object.values(data.outputs)]
                    .map((slot) => [slot.name, slot.tooltip]),
            }))"""
    )
    assert {node["name"] for node in shown} >= set(STAGES)
    for node in shown:
        assert node["category"].split("/")[0] == "Imagic"
        assert node["description"]
        assert len(node["slots"]) > 1
        assert [slot for slot, tip in node["slots"] if not tip] == [], node["name"]


def test_node_library_lists_our_nodes_under_imagic(editor: Editor) -> None:
    page = editor.page
    toggle = "() => app.extensionManager.sidebarTab.toggleSidebarTab('node-library')"
    editor.evaluate(toggle)
    page.get_by_role("treeitem", name="Imagic", exact=False).first.click()
    for name in ("Imagic Optimize Embedding", "Imagic Fine-tune Model"):
        page.get_by_text(name, exact=True).first.wait_for()
    editor.evaluate(toggle)


def test_our_nodes_have_help(editor: Editor) -> None:
    answers = editor.evaluate(
        """async () => Promise.all(Object.values(LiteGraph.registered_node_types)
            .map((type) => type.nodeData)
            .filter((data) => data?.python_module?.endsWith('Imagic'))
            .map(async ({ name, python_module }) => {
                const pack = python_module.split('.')[1]
                const answer = await fetch(`/extensions/${pack}/docs/${name}.md`)
                return [name, answer.ok ? await answer.text() : `${answer.status}`]
            }))"""
    )
    assert {name for name, _ in answers} >= set(STAGES)
    assert [name for name, text in answers if not text.startswith("# Imagic ")] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_translation_names_nothing_that_is_gone(client: Client, language: str) -> None:
    known = client.get("/object_info")
    translated = client.get("/i18n")[language]["nodeDefs"]
    assert set(translated) >= set(STAGES)
    for name, texts in translated.items():
        inputs = known[name]["input"]
        names = set(inputs["required"]) | set(inputs.get("optional", {}))
        assert set(texts["inputs"]) <= names, name
        places = {str(place) for place in range(len(known[name]["output"]))}
        assert set(texts["outputs"]) == places, name


def test_training_nodes_keep_their_seed(editor: Editor) -> None:
    widgets = editor.evaluate(
        "(names) => names.flatMap((n) => LiteGraph.createNode(n).widgets.map((w) => w.name))",
        STAGES[:2],
    )
    assert widgets.count("seed") == 2
    assert "control_after_generate" not in widgets


@pytest.mark.parametrize("typed", ["5e-7", "0.0000015", "0.002"])
def test_small_learning_rate_is_kept(editor: Editor, tmp_path: Path, typed: str) -> None:
    editor.drop(REPOSITORY / "example_workflows/imagic_edit.json")
    node = editor.find("ImagicFinetuneModel")
    assert editor.type_into(node, "learning_rate", typed) == float(typed)
    shown = editor.evaluate(
        """(id) => app.graph.getNodeById(id).widgets
            .find((one) => one.name === 'learning_rate')._displayValue""",
        node,
    )
    assert float(shown) == float(typed)

    saved = tmp_path / "saved.json"
    saved.write_text(editor.evaluate("() => JSON.stringify(app.graph.serialize())"))
    editor.drop(saved)
    assert editor.prompt()[str(node)]["inputs"]["learning_rate"] == float(typed)


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
    # Else: python tests/browser/make_workflows.py
    assert dropped == editor.prompt()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_our_conversion_is_the_front_ends(editor: Editor, client: Client, file: Path) -> None:
    editor.drop(file)
    ours = to_prompt(json.loads(file.read_text("utf-8")), client.get("/object_info"))
    assert {node: (one["class_type"], one["inputs"]) for node, one in ours.items()} == {
        node: (one["class_type"], one["inputs"]) for node, one in editor.prompt().items()
    }


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


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs_to_a_saved_picture(editor: Editor, stocked: Server, file: Path) -> None:
    before = saved_pictures(stocked)
    drop_quick(editor, file)
    heard = editor.run()
    assert heard.executed == set(editor.prompt())
    trained = [node for kind in STAGES[:2] for node in editor.find_all(kind)]
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
    drop_quick(editor, REPOSITORY / "example_workflows/imagic_edit.json")
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
    assert not heard.previewed & {str(editor.find(kind)) for kind in STAGES[:2]}
    assert len(pictures) == 2


def test_choosing_a_method_sets_what_suits_it_and_keeps_what_the_user_set(editor: Editor) -> None:
    from imagic_core.finetune import METHODS

    editor.drop(REPOSITORY / "example_workflows/imagic_edit.json")
    node = editor.find("ImagicFinetuneModel")
    choose = """([id, method]) => {
        const widgets = app.graph.getNodeById(id).widgets
        const combo = widgets.find((one) => one.name === 'method')
        combo.value = method
        combo.callback(method)
        return widgets.filter((one) => ['steps', 'learning_rate'].includes(one.name))
            .map((one) => one.value)
    }"""
    for method, settings in (*METHODS.items(), *METHODS.items()):
        expected = [settings.steps, settings.learning_rate]
        assert editor.evaluate(choose, [node, method]) == expected, method
    editor.set(node, "learning_rate", 0.00123)
    assert editor.evaluate(choose, [node, "lora"])[1] == 0.00123
