"""Edit a photograph by a sentence in a real ComfyUI, from nothing; see ``--help``."""

import argparse
import sys
from pathlib import Path

from machine.environment import MADE, prepared


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Edits a photograph by a sentence through a real ComfyUI server and makes one "
        "sheet of the results. Without options: a small model and picture of our own."
    )
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that ComfyUI loads")
    parser.add_argument("--image", type=Path, help="the photograph to edit")
    parser.add_argument("--prompt", help="what the photograph shall show")
    parser.add_argument(
        "--eta", type=float, nargs="+", default=[0.4, 0.6, 0.7, 0.8, 1.0],
        help="how far to go from the photograph (0) to the sentence (1); default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--megapixels", type=float, default=0.25,
        help="size to work at with your own checkpoint; 0.25 suits SD1.x, 1.0 SDXL and newer",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    parser.add_argument(
        "--out", type=Path, default=MADE / "demo" / "sheet.png", help="default: %(default)s"
    )
    given = parser.parse_args()
    if (given.image is None) != (given.prompt is None):
        parser.error("--image and --prompt belong together")
    if given.checkpoint and not given.image:
        parser.error("--checkpoint needs --image and --prompt")
    for file in (given.checkpoint, given.image):
        if file and not file.is_file():
            parser.error(f"{file} is not a file")
    return given


if __name__ == "__main__":
    arguments()
    script = Path(__file__).parent / "examples" / "demo_edit.py"
    # Only the host's Python has what the work itself needs.
    sys.exit(prepared().run(script, *sys.argv[1:], cwd=Path.cwd()))
