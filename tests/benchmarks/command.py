"""What the benchmarks' command lines have in common."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from machine.environment import MADE, REPOSITORY

README = REPOSITORY / "README.md"


def parser(about: str | None, name: str) -> argparse.ArgumentParser:
    """Begin the command line of the benchmark ``name``; ``about`` is its docstring."""
    begun = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    begun.add_argument(
        "--json",
        type=Path,
        default=MADE / "benchmarks" / f"{name}.json",
        help="where to write what was measured; default: %(default)s",
    )
    return begun


def comfyui() -> Path:
    """The ComfyUI to measure in; see ``machine.environment``."""
    return Path(os.environ["COMFYUI_PATH"])


def write(file: Path, measured: dict[str, Any]) -> None:
    """Write what was measured as JSON, into a new folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(measured, indent=1) + "\n")


def into_readme(name: str, table: str) -> None:
    """Write a benchmark's table into the README, in the place of the last one."""
    before, _, after = in_readme(name)
    README.write_text(f"{before}{table}{after}", "utf-8")


def in_readme(name: str) -> tuple[str, str, str]:
    """The README up to a benchmark's table, that table, and the rest."""
    text = README.read_text("utf-8")
    begin, end = f"<!-- {name}.py -->\n", f"<!-- end of {name}.py -->\n"
    start, stop = text.index(begin) + len(begin), text.index(end)
    return text[:start], text[start:stop], text[stop:]
