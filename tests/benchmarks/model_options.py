"""The checks of `families.py` for what other nodes put on a MODEL before it comes to us.

    python tests/benchmarks/model_options.py [--options NAME ...]

Prints a table: the loss asked of the host's own sampling before, after stage A, and of the MODEL
that stage B (`lora`) returns, beside the loss with which B ended; how far the gradients of
recomputed blocks and of one draw at a time are from those of two at once.
"""

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import torch
from families import kinds
from families.options import OPTIONS
from machine import imagic

from benchmarks import command
from benchmarks.families import BATCH, DRAWS, FAMILIES, RATE_A, STEPS, gradients_apart


def row(nodes: imagic.Pack, option: str) -> str:
    """The table's row of one option."""
    name, change = OPTIONS[option]
    if not FAMILIES[name].is_known():
        return f"| {option} | {FAMILIES[name].title} is not in this version of ComfyUI |"
    with tempfile.TemporaryDirectory() as folder:
        family, plain = kinds.load(name, Path(folder))
    with torch.inference_mode():
        model = change(plain)
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    try:
        optimized, _ = nodes.optimize(model, target, image, STEPS, RATE_A, 0, batch_size=BATCH)
    except ValueError as error:
        return f"| {option} | refused: {error!s:.300} |"
    start = nodes.sampled_loss(model, target, image, DRAWS, None)
    losses = nodes.hand_off(
        model, optimized, image, "lora",
        steps=STEPS, rate=0.01, batch_size=BATCH, draws=DRAWS, predicts=None,
    )  # fmt: skip
    cells = [f"{loss:.5f}" for loss in (start, *losses)]
    cells += [f"{apart:.0e}" for apart in gradients_apart(nodes, model, target, image)]
    return f"| {option} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = command.parser(__doc__, "model_options")
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    arguments = parser.parse_args()
    nodes = imagic.start(command.comfyui())
    rows = {}
    head = (
        "option", "start", "after A", "after B", "returned MODEL", "recomputed", "one at a time",
    )  # fmt: skip
    print(f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |", flush=True)
    for option in arguments.options:
        try:
            rows[option] = row(nodes, option)
        except Exception as error:  # one option's fault must not end the run of all
            rows[option] = f"| {option} | failed: {type(error).__name__}: {error!s:.300} |"
        print(rows[option], flush=True)
    command.write(arguments.json, rows)


if __name__ == "__main__":
    main()
