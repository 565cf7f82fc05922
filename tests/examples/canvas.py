"""A workflow as a description that ``build.js`` builds on the canvas."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from machine.environment import REPOSITORY

NAMESPACE = uuid.UUID("7d2b4a0e-9f0c-4c59-8a53-4f2d5b8f6a11")


def _stated(key: str) -> str:
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    found = re.search(rf'^{key} = "(?:>=)?(.+)"', text, re.MULTILINE)
    assert found, f"pyproject.toml states no {key}"
    return found[1]


PACKS = {
    "ours": {"cnr_id": _stated("name"), "ver": _stated("version")},
    "core": {"cnr_id": "comfy-core", "ver": _stated("requires-comfyui")},
}
"""Where the manager finds a node that is missing, as a property of each node."""


@dataclass(frozen=True)
class Output:
    """An output of a node, to be given to another node's input."""

    node: int
    name: str


@dataclass(frozen=True)
class Node:
    """A node of a workflow; ``node["MODEL"]`` is its output of that name."""

    index: int

    def __getitem__(self, output: str) -> Output:
        return Output(self.index, output)


@dataclass
class Workflow:
    """A workflow as ``build.js`` takes it. Nodes stand in the column begun last."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[int, str, int, str]] = field(default_factory=list)
    columns: list[dict[str, Any]] = field(default_factory=list)
    form: dict[str, Any] | None = None
    box: dict[str, Any] | None = None

    def column(self, title: str) -> None:
        """Begin a column; neighbours of one title share one frame."""
        self.columns.append({"title": title, "members": []})

    def node(
        self,
        kind: str,
        size: tuple[int, int] = (300, 0),
        models: tuple[dict[str, str], ...] = (),
        title: str = "",
        **inputs: Any,
    ) -> Node:
        """Add a node; an input is an ``Output`` to link, or the value of a widget.

        Args:
            kind: the node's id in the host.
            size: least width and height; the front end grows it to what the widgets need.
            models: where the front end offers to download the files that widgets name.
            title: what the user does here. A node that has one is coloured, as one to touch.
            inputs: all that does not keep its default.
        """
        index = len(self.nodes)
        widgets = {k: v for k, v in inputs.items() if not isinstance(v, Output)}
        for name, value in inputs.items():
            if isinstance(value, Output):
                self.links.append((value.node, value.name, index, name))
        self.nodes.append(
            {"type": kind, "size": size, "widgets": widgets, "models": models, "title": title}
        )
        self.columns[-1]["members"].append(index)
        return Node(index)

    def note(self, text: str, size: tuple[int, int]) -> None:
        """Add a note in Markdown."""
        self.node("MarkdownNote", size, text=text)

    def as_app(self, fields: dict[str, tuple[Node, str]], results: list[Node]) -> None:
        """Have it open as a form where the front end has apps.

        Args:
            fields: what the form calls a widget -> that widget.
            results: nodes whose pictures it shows.
        """
        self.form = {
            "inputs": [(label, node.index, widget) for label, (node, widget) in fields.items()],
            "outputs": [node.index for node in results],
        }

    def as_box(
        self,
        inputs: dict[str, list[tuple[Node, str]]],
        outputs: dict[str, Output],
        outside: list[Node],
        about: dict[str, Any],
    ) -> None:
        """Make one node of it, a subgraph blueprint.

        Args:
            inputs: name -> the inputs within that it feeds; one that has a widget shows it.
            outputs: name -> the output within that it passes on.
            outside: nodes to leave out.
            about: `category` and `description` of the subgraph, and its `aliases` for the search.
        """
        self.box = {
            "inputs": [[k, [(n.index, name) for n, name in to]] for k, to in inputs.items()],
            "outputs": [[k, (out.node, out.name)] for k, out in outputs.items()],
            "outside": [node.index for node in outside],
            **about,
        }

    def description(self, name: str) -> dict[str, Any]:
        """What ``build.js`` takes; the same name gives the same id."""
        about = {"id": str(uuid.uuid5(NAMESPACE, name)), "name": name, "packs": PACKS}
        return about | vars(self)
