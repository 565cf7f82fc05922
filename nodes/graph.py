"""What the running graph tells about an edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Node = Mapping[str, Any]


class RunningGraph(Protocol):
    """ComfyUI's ``DynamicPrompt``: what was queued, and what nodes have added to it since.

    A loop runs copies of its body's nodes under new ids, which the queued graph does not know.
    Their links lead to other copies or to nodes that were queued.
    """

    def has_node(self, node_id: str) -> bool:
        """Whether a node of this id is there."""

    def get_node(self, node_id: str) -> Node:
        """It, as in the API's format: `class_type` and `inputs`."""

    def all_node_ids(self) -> set[str]:
        """The ids of all."""


def learned_from(graph: RunningGraph | None, node: str | None) -> dict[str, Any]:
    """What the graph says about an edit: settings of the trainings, sentence, checkpoint.

    Args:
        graph: as it runs, or None where the host gives none.
        node: the id in it of the node that saves.

    Returns:
        Node type -> its settings, ``sentence`` and ``base_name``, as far as they can be found.
    """
    if not graph or not node or not graph.has_node(node):
        return {}
    inputs = graph.get_node(node)["inputs"]
    found: dict[str, Any] = {}
    for name in ("optimized", "lora"):
        trainer = _upstream(graph, inputs.get(name))
        if trainer.get("class_type", "").startswith("Imagic"):
            found[trainer["class_type"]] = _settings(trainer)
    text = _settings(_upstream(graph, inputs.get("target"))).get("text")
    if isinstance(text, str):
        found["sentence"] = text
    link = inputs.get("model")
    for _ in graph.all_node_ids():  # a graph without end is cut off at its size
        loader = _upstream(graph, link)
        link = loader.get("inputs", {}).get("model")
        if not link:
            names = [v for k, v in _settings(loader).items() if k.endswith("_name")]
            found.update({"base_name": names[0]} if names else {})
            break
    return found


def _upstream(graph: RunningGraph, link: Any) -> Node:
    match link:
        # What a node adds may also have a value in place of a link, such as a CONDITIONING's list.
        case [str(node), int()] if graph.has_node(node):
            return graph.get_node(node)
    return {}


def _settings(node: Node) -> dict[str, Any]:
    return {
        name: value
        for name, value in node.get("inputs", {}).items()
        if isinstance(value, bool | int | float | str)
    }
