"""The real front end in a browser: our nodes, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.prompts import file_of
from talk.editor import Editor

STAGES = ("ImagicOptimizeEmbedding", "ImagicFinetuneModel", "ImagicInterpolateConditioning")


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


def test_training_nodes_keep_their_seed(editor: Editor) -> None:
    widgets = editor.evaluate(
        "(names) => names.flatMap((n) => LiteGraph.createNode(n).widgets.map((w) => w.name))",
        STAGES[:2],
    )
    assert widgets.count("seed") == 2
    assert "control_after_generate" not in widgets


@pytest.mark.parametrize("typed", ["5e-7", "0.0000015", "0.002"])
def test_small_learning_rate_is_kept(editor: Editor, tmp_path: Path, typed: str) -> None:
    editor.drop(file_of("imagic_edit"))
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


def test_choosing_a_method_sets_what_suits_it_and_keeps_what_the_user_set(editor: Editor) -> None:
    from imagic_core.finetune import METHODS

    editor.drop(file_of("imagic_edit"))
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
