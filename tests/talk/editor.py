"""ComfyUI's real front end in a headless browser, driven as a user's hand and eye would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    TimeoutError,
    sync_playwright,
)

# The browser's own errands; on a machine without a network they only fill the console.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
BUILD = Path(__file__).with_name("build.js")
READY = "() => window.app?.vueAppReady && window.LiteGraph?.registered_node_types.KSampler"
# What every page of this host misses on a first visit, and asks of servers that it may not reach.
HOSTS_OWN = re.compile(r"userdata|user\.css|favicon|Content Security Policy|api\.comfy\.org")
LISTEN = """() => {
    const first = window.heard === undefined
    window.heard = { executed: [], previewed: [], ended: null }
    if (!first) return
    app.api.addEventListener('executing', ({ detail }) => detail && heard.executed.push(detail))
    app.api.addEventListener('b_preview_with_metadata', ({ detail }) =>
        heard.previewed.push(detail.displayNodeId))
    app.api.addEventListener('execution_success', ({ type }) => (heard.ended = type))
    app.api.addEventListener('execution_error', ({ detail }) =>
        (heard.ended = detail.exception_message))
    app.api.addEventListener('promptQueued', () => {
        const rejected = Object.entries(app.lastNodeErrors ?? {})
        if (rejected.length) heard.ended = JSON.stringify(rejected)
    })
}"""
SHOW = """([id, name]) => {
    const node = app.graph.getNodeById(id)
    const widget = node.widgets.find((one) => one.name === name)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [400 - node.pos[0], 200 - node.pos[1]]
    app.canvas.draw(true, true)
    const box = app.canvas.canvas.getBoundingClientRect()
    return [box.x + 400 + node.size[0] / 2, box.y + 200 + widget.last_y + 10]
}"""
# Nothing of a first visit (tutorials, template browser) may cover the canvas.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False}


def find_chromium() -> str | None:
    """The Chromium or Chrome of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    macos = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    windows = [
        os.path.expandvars(rf"%{root}%\Google\Chrome\Application\chrome.exe")
        for root in ("ProgramFiles", "ProgramFiles(x86)", "LocalAppData")
    ]
    return next(filter(None, map(shutil.which, (*names, macos, *windows))), None)


@dataclass(frozen=True)
class Run:
    """What the editor was told of one run: ids of the nodes that ran, and that showed previews."""

    executed: set[str]
    previewed: set[str]


class Editor:
    """An open editor; made by ``open_editor``."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.errors_at_start: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _hear(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not HOSTS_OWN.search(text):
            self.errors.append(text)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """Return what a JavaScript function answers inside the editor."""
        return self.page.evaluate(script, argument)

    def build(self, description: dict[str, Any]) -> str:
        """Build a workflow on the canvas and return it as the front end exports it."""
        return str(self.evaluate(BUILD.read_text("utf-8"), description))

    def drop(self, file: Path) -> None:
        """Drop a file on the middle of the canvas as a file manager does, and let it load.

        One that opens as an app is shown as a graph.
        """
        box = self.page.locator("#graph-canvas").bounding_box()
        assert box
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        self.evaluate("() => app.graph.clear()")
        session = self.page.context.new_cdp_session(self.page)
        # A hand hovers for a while before it lets go.
        for kind in ("dragEnter", *["dragOver"] * 5, "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
            self.page.wait_for_timeout(50)
        workflow = json.loads(file.read_text("utf-8"))
        expected = len(workflow["nodes"])
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=expected)
        if workflow.get("extra", {}).get("linearMode"):
            self.page.locator("#graph-canvas").wait_for(state="hidden")
            self.show_graph()

    def show_graph(self) -> None:
        """Turn from an app to its graph."""
        self.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
        self.page.locator("#graph-canvas").wait_for()

    def draw_nodes_as_elements(self, on: bool) -> None:
        """Draw nodes as elements of the page ("Nodes 2.0"), or on the canvas."""
        self.evaluate("() => app.graph.clear()")
        setting = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        self.evaluate(setting, on)

    @contextlib.contextmanager
    def searching(self, words: str) -> Iterator[Locator]:
        """Search for a node to put on the empty canvas; what is listed, best first."""
        page = self.page
        box = page.get_by_role("combobox").or_(page.get_by_placeholder("Search nodes")).last
        # Only an empty canvas that is done opening takes the double click.
        for _ in range(20):
            page.mouse.dblclick(1000, 600)
            with contextlib.suppress(TimeoutError):
                box.wait_for(timeout=2_000)
                break
        box.fill(words)
        page.wait_for_timeout(1_000)
        yield page.get_by_role("option")
        page.keyboard.press("Escape")
        box.wait_for(state="hidden")

    def type_into(self, node: int, widget: str, text: str) -> Any:
        """Double-click a widget of the node with this id, type a value, and return what it has."""
        field = self.page.locator(".graphdialog input")
        # A workflow just opened still moves into view, away from under the mouse.
        for _ in range(20):
            self.page.mouse.dblclick(*self.evaluate(SHOW, [node, widget]))
            with contextlib.suppress(TimeoutError):
                field.wait_for(timeout=2_000)
                break
        field.fill(text)
        field.press("Enter")
        return self.widget(node, widget)

    def skip_before(self, version: tuple[int, int], why: str) -> None:
        """Skip the test on older front ends, saying what theirs does instead."""
        import pytest

        if self.version < version:
            pytest.skip(f"the front end {self.version} {why}")

    @property
    def version(self) -> tuple[int, ...]:
        """Of the front end, such as (1, 49)."""
        found = self.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        return tuple(map(int, found.split(".")[:2]))

    def find(self, kind: str) -> int:
        """The id of the only node of a kind."""
        (found,) = self.find_all(kind)
        return found

    def find_all(self, kind: str) -> list[int]:
        """The ids of all nodes of a kind."""
        script = "(kind) => app.graph._nodes.filter((n) => n.type === kind).map((n) => n.id)"
        return [int(node) for node in self.evaluate(script, kind)]

    def set(self, node: int, widget: str, value: Any) -> None:
        """Give a widget of the node with this id a value."""
        self.evaluate(
            """([id, name, value]) => {
                app.graph.getNodeById(id).widgets.find((one) => one.name === name).value = value
            }""",
            [node, widget, value],
        )

    def widget(self, node: int, name: str) -> Any:
        """The value of a widget of the node with this id."""
        return self.evaluate(
            "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value",
            [node, name],
        )

    def run(self) -> Run:
        """Press Run and wait until the server is done.

        Raises:
            AssertionError: the server rejected the prompt, or a node failed.
        """
        self.evaluate(LISTEN)
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.page.wait_for_function("() => heard.ended", timeout=600_000)
        heard = self.evaluate("() => ({ ...heard })")
        assert heard["ended"] == "execution_success", heard["ended"]
        return Run(set(heard["executed"]), set(heard["previewed"]))

    def prompt(self) -> dict[str, Any]:
        """The workflow on the canvas in the API's format, converted by the front end."""
        return dict(self.evaluate("async () => (await app.graphToPrompt()).output"))


@contextlib.contextmanager
def browsing(chromium: str) -> Iterator[Browser]:
    """A headless browser, closed whatever happens."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_editor(chromium: str, url: str) -> Iterator[Editor]:
    """Open the editor of the server at ``url`` with an empty canvas; close the browser always."""
    with browsing(chromium) as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(180_000)
        editor = Editor(page)
        page.request.post(f"{url}/api/settings", data=SETTINGS)
        page.goto(url)
        page.wait_for_function(READY)
        editor.evaluate("() => app.graph.clear()")
        # The host's own code complains while it starts; the pack must not.
        editor.errors_at_start = [e for e in editor.errors if "imagic" in e.lower()]
        editor.errors.clear()
        yield editor
