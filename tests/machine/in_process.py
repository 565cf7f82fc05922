"""ComfyUI in this process, and the pack as its loader makes it; one for the life of the process."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from machine.environment import REPOSITORY
from machine.host_process import PACK, base_arguments, make_base


def import_file(name: str, file: Path) -> ModuleType:
    """Import a Python file, or a package's ``__init__.py``, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"not a Python file: {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def start(comfyui: Path, base: Path, *, cpu: bool = True) -> ModuleType:
    """Import ComfyUI with its core nodes and return the module ``comfy``.

    It reads and writes only ``base``, an empty folder, in which the pack is laid out.
    """
    make_base(base, REPOSITORY)
    sys.path.insert(0, str(comfyui))
    arguments = sys.argv
    # Read once, when comfy.cli_args is imported first.
    sys.argv = ["main.py", *(["--cpu"] if cpu else []), *base_arguments(base)]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    # As main.py does: once nodes is imported, comfy/utils.py would hide it.
    importlib.import_module("utils.extra_config")
    nodes = importlib.import_module("nodes")
    loop = asyncio.new_event_loop()
    # Some core nodes ask for it when they are loaded; it does not listen.
    importlib.import_module("server").PromptServer(loop)
    loading = nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    failed = loop.run_until_complete(loading)
    assert not failed, f"core nodes that did not import: {failed}"
    return importlib.import_module("comfy")


def load_pack() -> ModuleType:
    """The pack's module as ComfyUI's loader makes it; call it once, after ``start``."""
    folder_paths = importlib.import_module("folder_paths")
    path = os.path.join(folder_paths.get_folder_paths("custom_nodes")[0], PACK)
    loading = importlib.import_module("nodes").load_custom_node(path, module_parent="custom_nodes")
    assert asyncio.run(loading), "ComfyUI could not load the pack"
    return sys.modules[path.replace(".", "_x_")]
