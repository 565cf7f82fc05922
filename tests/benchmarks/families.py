"""What each model family learns, by each method and in each number format, and what is kept of it.

    COMFYUI_PATH=... python tests/benchmarks/families.py --json OUT.json [--markdown OUT.md]
                     [--families NAME ...] [--methods NAME ...] [--dtypes NAME ...]

Equation 3 on the same fixed noise, four times: for the target's embedding, for the optimised one,
at the end of fine-tuning, and asked of the host's own sampling with the MODEL that it returns. The
models are tiny and random and the steps few: the table shows that everything learns and that the
returned MODEL has what was learned, not how well real models do. The JSON file is written after
each row; rows that it has are not run again.
"""

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from families import kinds  # noqa: E402
from machine import imagic  # noqa: E402

from benchmarks import command  # noqa: E402

STEPS, BATCH, DRAWS = 8, 2, 4
RATE_A = 2e-2
RATES = {"full": 1e-4, "attention": 5e-4, "lora": 5e-4}
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")
COLUMNS = ("start", "after A", "after B", "returned MODEL")


def rows(
    nodes: imagic.Pack, name: str, dtype: str, methods: list[str]
) -> dict[str, dict[str, Any]]:
    """Losses of one family in one number format, method by method."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            family, model = kinds.load(name, Path(folder), dtype=getattr(torch, dtype))
    except NotImplementedError as error:  # the host makes no x4 upscaler in float8
        return {method: {"not loaded": f"{error!s:.200}"} for method in methods}
    predicts = family.predicts
    with torch.inference_mode():
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    if "noise_augmentation" in target[0][1]:
        # The noise that upscalers add to their low-resolution picture is another in each pass.
        target[0][1]["noise_augmentation"] = 0.0
    start = nodes.sampled_loss(model, target, image, DRAWS, predicts)
    begun = time.monotonic()
    optimized, _ = nodes.optimize(model, target, image, STEPS, RATE_A, 0, batch_size=BATCH)
    found = {}
    for method in methods:
        after_a, ended, handed_over = nodes.hand_off(
            model, optimized, image, method,
            steps=STEPS, rate=RATES[method], batch_size=BATCH, draws=DRAWS, predicts=predicts,
        )  # fmt: skip
        seconds, begun = time.monotonic() - begun, time.monotonic()
        losses = dict(zip(COLUMNS, (start, after_a, ended, handed_over), strict=True))
        found[method] = {**losses, "seconds": round(seconds, 1)}
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as markdown."""
    head = ("model", "method", "stored as", *COLUMNS, "lost in the hand-off")
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for key, row in results.items():
        name, method, dtype = key.split("/")
        title = kinds.FAMILIES[name].title
        if "not loaded" in row:
            blank = " |" * (len(COLUMNS) + 1)
            lines.append(f"| {title} | {method} | {dtype}: the host cannot load it |{blank}")
            continue
        losses = [row[c] for c in COLUMNS]
        # As a share of what fine-tuning gained, over what it started from.
        gained = losses[1] - losses[2]
        lost = f"{(losses[3] - losses[2]) / gained:+.4%}" if gained > 0 else "nothing gained"
        cells = [title, method, dtype, *(f"{x:.5f}" for x in losses), lost]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what the file lacks, print the table."""
    parser = command.parser(__doc__)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument(
        "--families", nargs="*", choices=kinds.FAMILIES, default=list(kinds.FAMILIES)
    )
    parser.add_argument("--methods", nargs="*", choices=RATES, default=list(RATES))
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    nodes = imagic.start(command.comfyui(parser, arguments))
    for dtype in arguments.dtypes:
        for name in arguments.families:
            wanted = [m for m in arguments.methods if f"{name}/{m}/{dtype}" not in results]
            if not wanted:
                continue
            for method, row in rows(nodes, name, dtype, wanted).items():
                results[f"{name}/{method}/{dtype}"] = row
                print(name, method, dtype, json.dumps(row), flush=True)
            importlib.import_module("comfy.model_management").unload_all_models()
            # after every model, so that a run cut short is not lost
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    order = list(kinds.FAMILIES)
    results = dict(sorted(results.items(), key=lambda item: order.index(item[0].split("/")[0])))
    print(table(results))
    if arguments.markdown:
        arguments.markdown.write_text(table(results))


if __name__ == "__main__":
    main()
