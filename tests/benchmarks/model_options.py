"""The checks of `families.py` for what other nodes put on a MODEL before it comes to us.

    python tests/benchmarks/model_options.py [--json OUT.json] [--readme] [--options NAME ...]

A table: the loss asked of the host's own sampling before, after stage A, and at the end of stage B
(`lora`), how far off that of the MODEL is that comes back, and how far the gradients of recomputed
blocks and of one draw at a time are from those of two at once.
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
from benchmarks.families import (
    BATCH,
    CHECKS,
    DRAWS,
    FAMILIES,
    LOSSES,
    STEPS,
    Row,
    gradients_apart,
    off,
)

HEAD = ("option", "model", "loss", "A", "`lora`", "off", *CHECKS[1:])


def row(nodes: imagic.Pack, option: str) -> Row:
    """What one option gave."""
    name, change = OPTIONS[option]
    if not FAMILIES[name].is_known():
        return {"not there": "not in this version"}
    with tempfile.TemporaryDirectory() as folder:
        family, plain = kinds.load(name, Path(folder), narrow=False)
    with torch.inference_mode():
        model = change(plain)
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    own = nodes.defaults("ImagicOptimizeEmbedding")["learning_rate"]
    try:
        optimized, _ = nodes.optimize(model, target, image, STEPS, own, 0, batch_size=BATCH)
    except ValueError as error:
        return {"refused": f"{error!s:.300}"}
    start = nodes.sampled_loss(model, target, image, DRAWS, None)
    losses = nodes.hand_off(
        model, optimized, image, "lora",
        steps=STEPS, batch_size=BATCH, draws=DRAWS, predicts=None,
    )  # fmt: skip
    apart = gradients_apart(nodes, model, target, image)
    return dict(zip((*LOSSES, *CHECKS[1:]), (start, *losses, *apart), strict=True))


def table(rows: dict[str, Row]) -> str:
    """The results as markdown, one line for each option."""
    lines = [f"| {' | '.join(HEAD)} |", f"| {' | '.join('---' for _ in HEAD)} |"]
    for option, found in rows.items():
        cells = [option, FAMILIES[OPTIONS[option][0]].title]
        if LOSSES[0] in found:
            cells += [f"{found[c]:.3f}" for c in LOSSES[:3]]
            cells += [f"{x:.0e}" for x in (off(found), *(found[c] for c in CHECKS[1:]))]
        else:
            why = "; ".join(f"{k}: {v}" for k, v in found.items()).replace("\n", " ")
            cells += [why.replace("|", "/"), *[""] * (len(HEAD) - 3)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run them all, print the table."""
    parser = command.parser(__doc__, "model_options")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    arguments = parser.parse_args()
    nodes = imagic.start(command.comfyui())
    rows: dict[str, Row] = {}
    for option in arguments.options:
        try:
            rows[option] = row(nodes, option)
        except Exception as error:  # one option's fault must not end the run of all
            rows[option] = {"failed": f"{type(error).__name__}: {error!s:.300}"}
        print(option, rows[option], flush=True)
        command.write(arguments.json, rows)
    print(table(rows))
    if arguments.readme:
        command.into_readme("model_options", table(rows))


if __name__ == "__main__":
    main()
