"""A custom node pack for tests: it lets a model's pass fail when it is told to.

Trainings are kept more often than for users, for those of tests are done in seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_base import BaseModel

FAULT = "fault.json"
"""In the temporary folder: ``kind``, `raised` or `out of memory`, and ``after`` how many passes."""

apply_model = BaseModel.apply_model
waiting: dict[str, Any] = {}
OFTEN = {"SECONDS_BETWEEN": 0.05, "SHARE_OF_TIME": 1.0}


def fails(self: BaseModel, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The model's pass, unless it is the one that fails."""
    for name, module in list(sys.modules.items()):
        if name.endswith("ComfyUI-Imagic.nodes.kept"):
            vars(module).update(OFTEN)
    file = Path(folder_paths.get_temp_directory(), FAULT)
    if file.exists():
        waiting.update(json.loads(file.read_text("utf-8")))
        file.unlink()
    if waiting:
        waiting["after"] -= 1
        if waiting["after"] < 0:
            kind = waiting["kind"]
            waiting.clear()
            raise torch.OutOfMemoryError(kind) if kind == "out of memory" else ValueError(kind)
    return apply_model(self, *args, **kwargs)


BaseModel.apply_model = fails
NODE_CLASS_MAPPINGS: dict[str, type] = {}
