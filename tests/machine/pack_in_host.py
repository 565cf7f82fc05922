"""ComfyUI in this process, with the pack as its loader makes it."""

import asyncio
import sys
import tempfile
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parents[2]


def load_pack(comfyui: Path) -> ModuleType:
    """Import ComfyUI and return the pack's module; on the CPU where there is no GPU."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import torch

    if not torch.cuda.is_available():
        sys.argv.append("--cpu")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  (reads the arguments once)

    sys.argv = arguments
    import folder_paths

    # The pack puts its photograph there, and that ComfyUI may be a user's.
    folder_paths.set_input_directory(tempfile.mkdtemp())
    import utils.extra_config  # noqa: F401  (hidden by comfy/utils.py once nodes is there)

    import nodes

    if not asyncio.run(nodes.load_custom_node(str(PACK), module_parent="custom_nodes")):
        raise RuntimeError("ComfyUI could not load the pack")
    return sys.modules[str(PACK).replace(".", "_x_")]
