"""A custom node for tests: it adds nodes to the graph while it runs, as loops do."""

import json
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link


class TestExpand:
    """Runs nodes under ids of their own; links to others lead to the graph that it is in."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "expand"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"body": ("STRING", {"multiline": True})}}

    def expand(self, body: str) -> dict[str, Any]:
        nodes, graph = json.loads(body), GraphBuilder()
        for name, node in nodes.items():
            graph.node(node["class_type"], name)
        for name, node in nodes.items():
            for key, value in node["inputs"].items():
                if is_link(value) and value[0] in nodes:
                    value = graph.lookup_node(value[0]).out(value[1])
                graph.lookup_node(name).set_input(key, value)
        return {"expand": graph.finalize(), "result": ()}


NODE_CLASS_MAPPINGS = {"TestExpand": TestExpand}
