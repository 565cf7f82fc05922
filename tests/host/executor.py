"""ComfyUI's own executor in this process, with nodes that give any value and take any."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any

Prompt = dict[str, dict[str, Any]]


class AnyType(str):
    """Fits every socket, as the wildcard of many packs does."""

    __hash__ = str.__hash__

    def __ne__(self, _: object) -> bool:
        return False


class Executor:
    """Validates and runs prompts as the server's queue does.

    ``given`` is what the node `Given` has to give, by name; `Taken` takes anything.
    """

    def __init__(self, host_nodes: Any, given: Mapping[str, Any]) -> None:
        import execution
        import server

        class Given:
            RETURN_TYPES = (AnyType("*"),)
            FUNCTION = "give"
            CATEGORY = "test"

            @classmethod
            def INPUT_TYPES(cls) -> dict[str, Any]:
                return {"required": {"name": ("STRING", {})}}

            def give(self, name: str) -> tuple[Any]:
                return (given[name],)

        class Taken:
            RETURN_TYPES = ()
            FUNCTION = "take"
            CATEGORY = "test"
            OUTPUT_NODE = True

            @classmethod
            def INPUT_TYPES(cls) -> dict[str, Any]:
                return {"required": {"value": (AnyType("*"), {})}}

            def take(self, value: Any) -> dict[str, Any]:
                return {}

        host_nodes.NODE_CLASS_MAPPINGS |= {"Given": Given, "Taken": Taken}
        self.host_nodes, self.execution, self.ids = host_nodes, execution, itertools.count()
        self.executor = execution.PromptExecutor(
            server.PromptServer.instance,
            cache_type=execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0},
        )

    def close(self) -> None:
        """Take the two nodes away again."""
        for name in ("Given", "Taken"):
            del self.host_nodes.NODE_CLASS_MAPPINGS[name]

    def run(self, prompt: Prompt) -> tuple[str, str]:
        """How a prompt ended, and what was said: `done`, `rejected` or `failed`."""
        prompt_id = f"prompt {next(self.ids)}"
        valid, error, outputs, node_errors = asyncio.run(
            self.execution.validate_prompt(prompt_id, prompt, None)
        )
        if not valid:
            return "rejected", json.dumps([error, node_errors], default=str)
        self.executor.execute(prompt, prompt_id, {}, outputs)
        for event, data in self.executor.status_messages:
            if event == "execution_error":
                return "failed", data["exception_message"]
        return "done", ""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
