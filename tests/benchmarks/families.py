"""What each model family learns, by each method and in each form of its weights, and what is kept.

    python tests/benchmarks/families.py [--json OUT.json] [--readme]
                     [--families NAME ...] [--methods NAME ...] [--forms NAME ...]

Equation 3 on the same fixed noise, four times: for the target's embedding, for the optimised one,
at the end of fine-tuning, and asked of the host's own sampling with the MODEL that it returns.
Beside it, whether every tensor of the text moved, and how far the gradients are from those of
recomputed blocks and of one draw at a time. The models are tiny and random and the steps few, all
other settings the nodes' own: the table shows that everything learns and that the returned MODEL
has what was learned, not how well real models do. The JSON file is written after each row; rows
that it has are not run again. `--readme` writes the table of all that it has into the README.
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
from families import kinds, quantised
from families.newer import NEWER
from host import given
from machine import imagic

from benchmarks import command

FAMILIES = kinds.FAMILIES | NEWER
STEPS, BATCH, DRAWS = 8, 2, 4
METHODS = ("lora", "full", "attention")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
GGUF = "GGUF Q8_0"
FORMS = (*DTYPES, *quantised.FORMS, GGUF)
LOSSES = ("start", "after A", "after B", "returned MODEL")
CHECKS = ("text learned", "recomputed", "one at a time")

Row = dict[str, Any]


def load(name: str, form: str, folder: Path) -> tuple[kinds.Family, Any]:
    """A family and its MODEL in one of ``FORMS``.

    Raises:
        NotImplementedError: this host has not got it.
    """
    if not FAMILIES[name].is_known():
        raise NotImplementedError("not in this version")
    if form in DTYPES:
        return kinds.load(name, folder, narrow=False, dtype=DTYPES[form])
    if form in quantised.LAYOUTS and not quantised.are_known():
        raise NotImplementedError("not in this version")
    if form != GGUF:
        return quantised.load(name, form, folder)
    if name not in quantised.GGUF:
        raise NotImplementedError("no GGUF of it can be loaded")
    pack = quantised.gguf_pack(command.comfyui())
    if pack is None:
        raise NotImplementedError("no ComfyUI-GGUF; set COMFYUI_GGUF to where it lies")
    return quantised.load_gguf(name, pack, folder)


def rows(nodes: imagic.Pack, name: str, form: str, methods: list[str]) -> dict[str, Row]:
    """Losses and checks of one family in one form, method by method."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            family, model = load(name, form, Path(folder))
    except NotImplementedError as error:
        return {method: {"not there": f"{error!s:.200}"} for method in methods}
    except Exception as error:  # such as a plan that the host cannot read off packed weights
        why = f"{type(error).__name__}: {error!s:.200}"
        return {method: {"ComfyUI does not load it": why} for method in methods}
    predicts = family.predicts
    with torch.inference_mode():
        target, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    if "noise_augmentation" in target[0][1]:
        # The noise that upscalers add to their low-resolution picture is another in each pass.
        target[0][1]["noise_augmentation"] = 0.0
    own = nodes.defaults("ImagicOptimizeEmbedding")["learning_rate"]
    begun = time.monotonic()
    try:
        optimized, _ = nodes.optimize(model, target, image, STEPS, own, 0, batch_size=BATCH)
    except ValueError as error:
        return {method: {"refused": f"{error!s:.300}"} for method in methods}
    try:
        start = nodes.sampled_loss(model, target, image, DRAWS, predicts)
    except Exception as error:  # such as a quantised layer that is given no rows
        why = f"{type(error).__name__}: {error!s:.200}"
        return {method: {"ComfyUI does not sample it": why} for method in methods}
    checks: Row = {}
    if form in DTYPES:
        checks = dict(zip(CHECKS, _checks(nodes, model, target, optimized, image), strict=True))
    found: dict[str, Row] = {}
    for method in methods:
        try:
            after_a, ended, handed_over = nodes.hand_off(
                model, optimized, image, method,
                steps=STEPS, batch_size=BATCH, draws=DRAWS, predicts=predicts,
            )  # fmt: skip
        except ValueError as error:
            found[method] = {"refused": f"{error!s:.300}"}
            continue
        except FloatingPointError as error:
            found[method] = {"failed": f"{type(error).__name__}: {error!s:.300}"}
            continue
        seconds, begun = time.monotonic() - begun, time.monotonic()
        losses = dict(zip(LOSSES, (start, after_a, ended, handed_over), strict=True))
        found[method] = {**losses, **checks, "seconds": round(seconds, 1)}
    return found


def _checks(
    nodes: Any, model: Any, target: Any, optimized: Any, image: Any
) -> tuple[str, float, float]:
    """Of the text what moved, and the gradients' relative distances."""
    before, after = (nodes.host.read_sentence("text", c) for c in (target, optimized))
    before, after = (s.embedding.named() for s in (nodes.host.as_read(before, after), after))
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


HEAD = (
    "model", "predicts", "learned of the text", "ComfyUI", "loss", "A", "`lora`", "`full`",
    "off", "half precision", "quantised",
)  # fmt: skip


def table(results: dict[str, Row]) -> str:
    """The results as markdown, one line for each family."""
    lines = [f"| {' | '.join(HEAD)} |", f"| {' | '.join('---' for _ in HEAD)} |"]
    lines += [f"| {' | '.join(_cells(name, results))} |" for name in FAMILIES]
    return "\n".join(lines) + "\n"


def _cells(name: str, results: dict[str, Row]) -> list[str]:
    family = FAMILIES[name]
    found = {
        (method, form, host): row
        for key, row in results.items()
        for of, method, form, host in [key.split("/")]
        if of == name and "not there" not in row
    }
    hosts = sorted({host for _, form, host in found if form == "float32"})
    cells = [family.title, family.predicts]
    if not hosts:
        return [*cells, "", "not run", *[""] * (len(HEAD) - 4)]
    plain = [found[method, "float32", hosts[-1]] for method in METHODS[:2]]
    why = _trouble(plain[0])
    if why:
        return [*cells, "", ", ".join(hosts), why, *[""] * (len(HEAD) - 5)]
    ran = [row for (_, form, _), row in found.items() if form == "float32" and not _trouble(row)]
    cells += [plain[0][CHECKS[0]], ", ".join(hosts), *(f"{plain[0][c]:.3f}" for c in LOSSES[:2])]
    cells += [_trouble(row) or f"{row[LOSSES[2]]:.3f}" for row in plain]
    half = [f for f in list(DTYPES)[1:] if (METHODS[0], f, hosts[-1]) in found]
    forms = [*quantised.FORMS, GGUF]
    return [
        *cells,
        f"{max(map(off, ran)):.0e}",
        *(
            _told(found, [form for form in some if form in {f for _, f, _ in found}])
            for some in (half, forms)
        ),
    ]


def _told(found: dict[tuple[str, str, str], Row], forms: list[str]) -> str:
    """Forms in which `lora` learned, with what of it is off, or why not."""
    cells = []
    for form in forms:
        rows = [row for (m, f, _), row in found.items() if (m, f) == (METHODS[0], form)]
        bad = next((why.split(". ")[0] for why in map(_trouble, rows) if why), None)
        apart = max(map(off, rows)) if not bad else 0
        cells.append(
            f"{form}: {bad}" if bad else form + (f" ({apart:.0e})" if apart > 1e-3 else "")
        )
    return ", ".join(cells)


def _trouble(row: Row) -> str | None:
    """Why nothing was learned; None where it was."""
    for why in ("refused", "failed"):
        if why in row:
            told = row[why].removeprefix("Imagic Optimize Embedding: ")
            return f"{why}: {told}".replace("\n", " ").replace("|", "/")
    if LOSSES[0] not in row:
        return next(iter(row))
    return None if row[LOSSES[2]] < row[LOSSES[1]] else "did not learn"


def off(row: Row) -> float:
    """How far the returned MODEL's loss is from where training ended, in what training gained."""
    _, before, ended, returned = (row[c] for c in LOSSES)
    return float(abs(returned - ended) / abs(before - ended))


def main() -> None:
    """Run what the file lacks, print the table."""
    parser = command.parser(__doc__, "families")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS[:2]))
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    nodes = imagic.start(command.comfyui())
    host = importlib.import_module("comfyui_version").__version__
    for form in arguments.forms:
        for name in arguments.families:
            # Only low-rank changes go beside quantised weights.
            methods = arguments.methods if form in DTYPES else ["lora"]
            wanted = [m for m in methods if f"{name}/{m}/{form}/{host}" not in results]
            if not wanted:
                continue
            try:
                found = rows(nodes, name, form, wanted)
            except Exception as error:  # one family's fault must not end the run of all
                why = f"{type(error).__name__}: {error!s:.300}"
                found = {method: {"failed": why} for method in wanted}
            for method, row in found.items():
                results[f"{name}/{method}/{form}/{host}"] = row
                print(name, method, form, json.dumps(row), flush=True)
            importlib.import_module("comfy.model_management").unload_all_models()
            # after every model, so that a run cut short is not lost
            command.write(arguments.json, results)
    print(table(results))
    if arguments.readme:
        command.into_readme("families", table(results))


if __name__ == "__main__":
    main()
