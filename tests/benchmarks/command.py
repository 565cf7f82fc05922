"""What the benchmarks' command lines have in common."""

import argparse
import os
from pathlib import Path


def parser(about: str | None) -> argparse.ArgumentParser:
    """Begin a command line; ``about`` is the benchmark's docstring."""
    begun = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    begun.add_argument("--json", type=Path, required=True)
    begun.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    return begun


def comfyui(begun: argparse.ArgumentParser, given: argparse.Namespace) -> Path:
    """The ComfyUI to measure in, or end with what to say."""
    if given.comfyui is None:
        begun.error("name a ComfyUI with --comfyui or COMFYUI_PATH")
    return Path(given.comfyui)
