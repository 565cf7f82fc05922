"""What each model family learns, by each method and in each number format, and what is kept of it.

    python tests/benchmarks/families.py [--json OUT.json] [--markdown OUT.md]
                     [--families NAME ...] [--methods NAME ...] [--dtypes NAME ...]

Equation 3 on the same fixed noise, four times: for the target's embedding, for the optimised one,
at the end of fine-tuning, and asked of the host's own sampling with the MODEL that it returns.
Beside it, whether every tensor of the text moved, and how far the gradients are from those of
recomputed blocks and of one draw at a time. The models are tiny and random and the steps few: the
table shows that everything learns and that the returned MODEL has what was learned, not how well
real models do. The JSON file is written after each row; rows that it has are not run again.
"""

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import torch
from families import kinds
from families.newer import NEWER
from host import given
from machine import imagic

from benchmarks import command

FAMILIES = kinds.FAMILIES | NEWER
STEPS, BATCH, DRAWS = 8, 2, 4
RATE_A = 2e-2
RATES = {"full": 0.003, "attention": 0.01, "lora": 0.01}
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")
LOSSES = ("start", "after A", "after B", "returned MODEL")
CHECKS = ("text learned", "recomputed", "one at a time")

Row = dict[str, Any]


def rows(nodes: imagic.Pack, name: str, dtype: str, methods: list[str]) -> dict[str, Row]:
    """Losses and checks of one family in one number format, method by method."""
    if not FAMILIES[name].is_known():
        return {method: {"not there": "not in this version of ComfyUI"} for method in methods}
    try:
        with tempfile.TemporaryDirectory() as folder:
            family, model = kinds.load(name, Path(folder), dtype=getattr(torch, dtype))
    except NotImplementedError as error:  # the host makes no x4 upscaler in float8
        return {method: {"not there": f"{error!s:.200}"} for method in methods}
    predicts = family.predicts
    with torch.inference_mode():
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    if "noise_augmentation" in target[0][1]:
        # The noise that upscalers add to their low-resolution picture is another in each pass.
        target[0][1]["noise_augmentation"] = 0.0
    begun = time.monotonic()
    try:
        optimized, _ = nodes.optimize(model, target, image, STEPS, RATE_A, 0, batch_size=BATCH)
    except ValueError as error:
        return {method: {"refused": f"{error!s:.300}"} for method in methods}
    start = nodes.sampled_loss(model, target, image, DRAWS, predicts)
    checks = dict(zip(CHECKS, _checks(nodes, model, target, optimized, image), strict=True))
    found = {}
    for method in methods:
        after_a, ended, handed_over = nodes.hand_off(
            model, optimized, image, method,
            steps=STEPS, rate=RATES[method], batch_size=BATCH, draws=DRAWS, predicts=predicts,
        )  # fmt: skip
        seconds, begun = time.monotonic() - begun, time.monotonic()
        losses = dict(zip(LOSSES, (start, after_a, ended, handed_over), strict=True))
        found[method] = {**losses, **checks, "seconds": round(seconds, 1)}
    return found


def _checks(
    nodes: Any, model: Any, target: Any, optimized: Any, image: Any
) -> tuple[str, float, float]:
    """Of the text what moved, and the gradients' relative distances."""
    before, after = (
        nodes.host.read_sentence("text", c).embedding.named() for c in (target, optimized)
    )
    learned = {name: bool((after[name] != before[name]).any()) for name in before}
    text = ", ".join(name if moved else f"not {name}" for name, moved in learned.items())
    return text, *gradients_apart(nodes, model, target, image)


def gradients_apart(nodes: Any, model: Any, target: Any, image: Any) -> tuple[float, float]:
    """How far gradients of recomputed blocks, and of one draw at a time, are from the plain ones.

    Norm of the difference, all gradients taken as one vector, in the norm of the plain ones.
    """
    kept = nodes.gradients(model, target, image)
    names = list(kept)

    def apart(**other: Any) -> float:
        found = nodes.gradients(model, target, image, **other)
        if list(found) != names:
            raise AssertionError(f"gradients of {set(found) ^ set(kept)} are missing")
        return given.apart([found[n] for n in names], [kept[n] for n in names])

    return apart(recompute=True), apart(at_once=1)


def table(results: dict[str, Row]) -> str:
    """The results as markdown, one line for each family in each number format."""
    methods = [m for m in RATES if any(key.split("/")[1] == m for key in results)]
    head = ("model", "ComfyUI", "stored as", *LOSSES[:2], *methods, "lost in the hand-off", *CHECKS)
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for name, dtype in dict.fromkeys((key.split("/")[0], key.split("/")[2]) for key in results):
        rows = {m: row for m in methods if (row := results.get(f"{name}/{m}/{dtype}"))}
        first = next(iter(rows.values()))
        cells = [FAMILIES[name].title, first["host"], dtype]
        reasons = [f"{k}: {first[k]}" for k in ("not there", "refused", "failed") if k in first]
        if reasons:
            cells += [reasons[0].replace("\n", " "), *[""] * (len(head) - 4)]
        else:
            text, *apart = (first[c] for c in CHECKS)
            cells += [f"{first[c]:.4f}" for c in LOSSES[:2]]
            cells += [f"{rows[m][LOSSES[2]]:.4f}" if m in rows else "" for m in methods]
            cells += [f"{max(map(_lost, rows.values())):.0e}", text, *(f"{x:.0e}" for x in apart)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _lost(row: Row) -> float:
    """How far the returned MODEL's loss is from where training ended, in what training gained."""
    _, before, ended, returned = (row[c] for c in LOSSES)
    return abs(returned - ended) / abs(before - ended)


def main() -> None:
    """Run what the file lacks, print the table."""
    parser = command.parser(__doc__, "families")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", choices=RATES, default=list(RATES))
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    nodes = imagic.start(command.comfyui())
    host = importlib.import_module("comfyui_version").__version__
    for dtype in arguments.dtypes:
        for name in arguments.families:
            wanted = [m for m in arguments.methods if f"{name}/{m}/{dtype}" not in results]
            if not wanted:
                continue
            try:
                found = rows(nodes, name, dtype, wanted)
            except Exception as error:  # one family's fault must not end the run of all
                why = f"{type(error).__name__}: {error!s:.300}"
                found = {method: {"failed": why} for method in wanted}
            for method, row in found.items():
                results[f"{name}/{method}/{dtype}"] = {"host": host, **row}
                print(name, method, dtype, json.dumps(row), flush=True)
            importlib.import_module("comfy.model_management").unload_all_models()
            # after every model, so that a run cut short is not lost
            command.write(arguments.json, results)
    order = list(FAMILIES)
    results = dict(sorted(results.items(), key=lambda item: order.index(item[0].split("/")[0])))
    print(table(results))
    if arguments.markdown:
        arguments.markdown.write_text(table(results))


if __name__ == "__main__":
    main()
