"""Ways to a first edit: the template browser, a box that a search finds, a form to fill in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from examples.parts import IMAGE
from examples.prompts import QUICK, saved_pictures
from examples.workflows import BLUEPRINTS, TITLES
from machine.host_process import PACK, Server
from PIL import Image
from playwright.sync_api import expect
from talk.editor import Editor

NUMBERED = re.compile(r"^\d\d ")
# Nodes of the canvas and of the boxes on it.
ALL_NODES = "app.graph._nodes.flatMap((one) => [one, ...(one.subgraph?._nodes ?? [])])"


def open_templates(editor: Editor) -> None:
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    editor.page.get_by_text(PACK, exact=True).first.click()
    editor.page.get_by_text(TITLES["imagic_edit"], exact=True).first.wait_for()


def make_quick(editor: Editor) -> None:
    editor.evaluate(
        f"""(quick) => {{
            for (const node of {ALL_NODES})
                for (const [name, value] of Object.entries(quick[node.type] ?? {{}}))
                    node.widgets.find((one) => one.name === name).value = value
        }}""",
        QUICK,
    )


def prompt_in(picture: Path) -> list[dict[str, Any]]:
    """The nodes of the prompt in a picture's file."""
    with Image.open(picture) as opened:
        return list(json.loads(opened.info["prompt"]).values())


def inputs_of(prompt: list[dict[str, Any]], kind: str, name: str) -> list[Any]:
    return [node["inputs"][name] for node in prompt if node["class_type"] == kind]


def test_the_template_browser_lists_the_examples_in_order_with_pictures(editor: Editor) -> None:
    page = editor.page
    open_templates(editor)
    shown = list(dict.fromkeys(page.get_by_text(NUMBERED).all_inner_texts()))
    assert len(shown) >= 8  # the last come only when they are scrolled to
    assert shown == sorted(TITLES.values())[: len(shown)]
    # The address of a picture is the front end's own copy; only what is in view is there.
    drawn = """(titles) => {
        const images = [...document.images].filter((one) => titles.includes(one.alt))
        return images.length > 3 && images.every((one) => one.complete && one.naturalWidth)
    }"""
    page.wait_for_function(drawn, arg=list(TITLES.values()), timeout=20_000)
    page.get_by_text(TITLES["imagic_edit"], exact=True).first.click()
    page.wait_for_function("() => app.graph._nodes.some((n) => n.title === 'Your sentence')")


def test_a_search_for_edit_photo_finds_a_box_that_edits(editor: Editor, stocked: Server) -> None:
    editor.skip_before((1, 49), "has another search box")
    page = editor.page
    (name,) = BLUEPRINTS
    editor.evaluate("() => app.graph.clear()")
    with editor.searching("edit photo") as listed:
        assert listed.first.inner_text().startswith(name)
        page.keyboard.press("Enter")
        page.wait_for_function("() => app.graph._nodes.length === 1")
        # It follows the mouse until a click, and an escape takes it back.
        page.mouse.move(900, 500)
        page.wait_for_timeout(300)
        page.mouse.click(900, 500)
        page.wait_for_function("() => !app.graph._nodes[0].flags.ghost")
    box = editor.evaluate(
        """() => {
            const [box] = app.graph._nodes
            return { title: box.title, widgets: box.widgets.map((one) => one.name),
                outputs: box.outputs.map((one) => one.name) }
        }"""
    )
    described = BLUEPRINTS[name]().description(name)["box"]
    assert box["title"] == name
    assert ["photograph", *box["widgets"]] == [label for label, _ in described["inputs"]]
    assert box["outputs"] == [label for label, _ in described["outputs"]]

    editor.evaluate(
        """(image) => {
            const [box] = app.graph._nodes
            const add = (type) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                return node
            }
            const load = add('LoadImage')
            load.widgets[0].value = image
            load.connect(0, box, 0)
            for (const output of [0, 1]) box.connect(output, add('SaveImage'), 0)
            const set = (name, value) =>
                (box.widgets.find((one) => one.name === name).value = value)
            set('sentence', 'a photo of a cat wearing a hat')
            set('lowest eta', 0.3)
        }""",
        IMAGE,
    )
    make_quick(editor)
    editor.evaluate(
        "() => (app.graph._nodes[0].widgets.find((w) => w.name === 'megapixels').value = 0.01)"
    )
    before = saved_pictures(stocked.base)
    editor.run()
    pictures = saved_pictures(stocked.base) - before
    sizes = []
    for picture in pictures:
        with Image.open(picture) as opened:
            sizes.append(opened.size)
    # The edit, and a sheet of the photograph and three eta.
    (edit, sheet) = sorted(sizes)
    assert edit == (120, 80) and sheet[0] > 4 * edit[0] and sheet[1] < 2 * edit[1]
    prompt = prompt_in(pictures.pop())
    assert 0.3 in inputs_of(prompt, "ImagicEtaSweep", "start")
    assert "a photo of a cat wearing a hat" in inputs_of(prompt, "CLIPTextEncode", "text")


def test_the_app_is_a_form_that_edits(editor: Editor, stocked: Server) -> None:
    editor.skip_before((1, 49), "shows every widget of an app, not its form")
    page = editor.page
    open_templates(editor)
    page.get_by_text(TITLES["imagic_app"], exact=True).first.click()
    page.get_by_text("Your sentence", exact=True).first.wait_for()
    for label in ("Your photograph", "Your checkpoint"):
        expect(page.get_by_text(label, exact=True).first).to_be_visible()
    if page.get_by_text("Skip", exact=True).count():
        page.get_by_text("Skip", exact=True).first.click()
    make_quick(editor)
    page.get_by_role("textbox").filter(visible=True).first.fill("a photo of a yawning cat")
    before = saved_pictures(stocked.base)
    editor.run()
    (picture,) = saved_pictures(stocked.base) - before
    texts = inputs_of(prompt_in(picture), "CLIPTextEncode", "text")
    assert "a photo of a yawning cat" in texts
    page.locator(f"img[src*='{picture.name}']").filter(visible=True).first.wait_for()
    editor.show_graph()
