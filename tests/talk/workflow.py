"""A workflow file as the prompt that ComfyUI's API takes."""

from __future__ import annotations

from typing import Any

from talk.api import Prompt

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_NOTES = ("Note", "MarkdownNote")


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """Convert as the front end does, for plain workflows: no subgraphs, reroutes, muted nodes.

    ``object_info`` is the server's description of its nodes. Inputs that the server knows and the
    file does not get their defaults.

    Raises:
        KeyError: the server does not know a node of the workflow.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _NOTES:
            continue
        linked = {slot["name"]: slot["link"] for slot in node.get("inputs", ()) if slot["link"]}
        inputs = _widget_values(node, object_info[node["type"]]["input"])
        inputs |= {name: sources[link] for name, link in linked.items()}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    """The ids of all nodes of a type, in the order of the workflow."""
    return [key for key, node in prompt.items() if node["class_type"] == kind]


def find(prompt: Prompt, class_type: str) -> dict[str, Any]:
    """Return the inputs of the only node of a class, to be read and changed.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = nodes_of(prompt, class_type)
    if len(found) != 1:
        raise ValueError(f"{len(found)} nodes are {class_type}, expected one")
    return prompt[found[0]]["inputs"]


def _widget_values(node: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    given = iter(node.get("widgets_values") or ())
    values = {}
    known = described.get("required", {}) | described.get("optional", {})
    for name, (kind, *rest) in known.items():
        options = rest[0] if rest else {}
        if not (isinstance(kind, list) or kind in _WIDGETS) or options.get("forceInput"):
            continue
        values[name] = next(given, options.get("default"))
        if options.get("control_after_generate"):
            next(given, None)  # what the front end does with the seed after a run
    return values
