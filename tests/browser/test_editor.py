"""The real front end in a browser: our nodes, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.prompts import file_of
from examples.workflows import BLUEPRINTS
from locales.texts import LANGUAGES
from talk.client import Client
from talk.editor import READY, Editor

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


def found(editor: Editor, words: str) -> list[str]:
    """What the search box lists for ``words``, best first."""
    with editor.searching(words) as box:
        listed = [text.split("\n")[0] for text in box.all_inner_texts()]
    return listed


def test_search_for_imagic_lists_the_three_stages_first(editor: Editor) -> None:
    editor.skip_before((1, 49), "sorts what it found by itself")
    titles = editor.evaluate(
        "(names) => names.map((name) => LiteGraph.registered_node_types[name].title)", STAGES
    )
    listed = found(editor, "imagic")
    assert listed[:3] == titles and len(listed) >= 10


def test_search_finds_the_stages_by_what_they_do(editor: Editor, client: Client) -> None:
    known = client.get("/object_info")
    editor.skip_before((1, 49), "searches names alone")
    titles = [known[name]["display_name"] for name in STAGES]
    for words in (
        "edit photo", "edit image by text", "image editing", "dreambooth", "text embedding",
        "照片", "사진",
    ):  # fmt: skip
        # A blueprint is found by its name alone.
        listed = [title for title in found(editor, words) if title not in BLUEPRINTS]
        assert listed[:3] == titles, words
    # here the host's own trainers are better known
    assert set(found(editor, "train")) >= set(titles)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ImagicOptimizeEmbedding", ["steps", "learning_rate"]),
        ("ImagicFinetuneModel", ["method", "steps", "learning_rate"]),
    ],
)
def test_a_new_training_node_shows_what_a_newcomer_needs(
    editor: Editor, name: str, shown: list[str]
) -> None:
    (visible, small), (all_of_them, large) = editor.evaluate(
        """(name) => {
            app.graph.clear()
            const node = LiteGraph.createNode(name)
            app.graph.add(node)
            const seen = () => [
                node.widgets.filter((w) => node.isWidgetVisible(w)).map((w) => w.name),
                node.computeSize()[1],
            ]
            const usual = seen()
            node.toggleAdvanced()
            return [usual, seen()]
        }""",
        name,
    )
    assert visible == shown and small < large
    assert {"seed", "recipe", "batch_size", "training_dtype", "save_memory"} <= set(all_of_them)


def test_the_first_run_of_the_example_of_a_saved_edit_says_what_to_do(editor: Editor) -> None:
    editor.drop(file_of("imagic_reuse"))
    editor.set(editor.find("ImagicLoadEdit"), "edit", "imagic/nobody's.safetensors [output]")
    with pytest.raises(AssertionError) as heard:
        editor.run()
    said = "Imagic Load Edit: 'edit' names \"imagic/nobody's.safetensors [output]\", which is not"
    assert str(heard.value).startswith(said)
    shows(editor, "which is not among the")


def test_a_name_that_cannot_be_is_refused_by_the_nodes_own_sentence(
    editor: Editor, client: Client
) -> None:
    editor.drop(file_of("imagic_eta_sheet"))
    saver = editor.find("ImagicSaveEdit")
    editor.set(saver, "filename_prefix", "../outside")
    with pytest.raises(AssertionError, match="filename_prefix"):
        editor.run()
    shows(editor, "type another, such as")
    # What does not lead to that node is run all the same.
    client.post("/queue", {"clear": True})
    client.post("/interrupt", {})


def shows(editor: Editor, words: str) -> None:
    """Wait until the page shows these words of an error, without a click."""
    editor.page.get_by_text(words).filter(visible=True).first.wait_for(timeout=20_000)
    editor.page.keyboard.press("Escape")


@pytest.mark.parametrize("language", ["", *LANGUAGES])
def test_our_nodes_have_help_with_a_picture(editor: Editor, language: str) -> None:
    # where the front end looks first, and where it looks if there is no page of that language
    page = f"/{language}.md" if language else ".md"
    answers = editor.evaluate(
        """async (page) => Promise.all(Object.values(LiteGraph.registered_node_types)
            .map((type) => type.nodeData)
            .filter((data) => data?.python_module?.endsWith('Imagic'))
            .map(async ({ name, python_module }) => {
                const docs = `/extensions/${python_module.split('.')[1]}/docs/`
                const answer = await fetch(`${docs}${name}${page}`)
                const text = answer.ok ? await answer.text() : `${answer.status}`
                const picture = await fetch(docs + text.match(/!\\[.*\\]\\((.*)\\)/)?.[1])
                return [name, text, picture.headers.get('content-type')]
            }))""",
        page,
    )
    assert {name for name, *_ in answers} >= set(STAGES)
    assert [name for name, text, _ in answers if not text.startswith("# Imagic ")] == []
    assert [name for name, _, kind in answers if kind != "image/jpeg"] == []


def test_the_editor_speaks_the_users_language(editor: Editor) -> None:
    editor.skip_before((1, 49), "does not translate other packs' nodes")
    page = editor.page
    editor.evaluate("(one) => app.extensionManager.setting.set('Comfy.Locale', one)", "ja")
    try:
        page.reload()
        page.wait_for_function(READY)
        editor.drop(file_of("imagic_edit"))
        said = editor.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id)
                return [
                    LiteGraph.registered_node_types[node.type].title,
                    node.inputs.find((one) => one.name === 'optimized').localized_name,
                    node.widgets.find((one) => one.name === 'steps').label,
                ]
            }""",
            editor.find("ImagicFinetuneModel"),
        )
        assert said == ["Imagic モデルのファインチューニング", "最適化した条件付け", "ステップ数"]
    finally:
        editor.evaluate("(one) => app.extensionManager.setting.set('Comfy.Locale', one)", "en")
        page.reload()
        page.wait_for_function(READY)
        # As at the first start, the host's own code complains.
        editor.errors[:] = [error for error in editor.errors if "imagic" in error.lower()]


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


def test_the_name_of_an_edit_has_its_date_and_widgets_replaced(editor: Editor) -> None:
    editor.drop(file_of("imagic_eta_sheet"))
    saver = editor.find("ImagicSaveEdit")
    editor.set(saver, "filename_prefix", "%date:yyyy-MM-dd%/%ImagicFinetuneModel.method%_%year%")
    sent = editor.prompt()[str(saver)]["inputs"]["filename_prefix"]
    today = editor.evaluate("() => new Date().toLocaleDateString('sv')")
    # What the server replaces stays for the server.
    assert sent == f"{today}/lora_%year%"
    assert editor.widget(saver, "filename_prefix").startswith("%date:")
