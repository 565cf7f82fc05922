"""The tables of the edits with a known truth."""

import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks import command

NAMES = {
    "imagic": "Imagic",
    "imagic, inverted": "Imagic, half of the noise the photograph's (*06 Keep what is around*)",
    "imagic, fast": "Imagic by recipe `fast`",
    "imagic, paper": "Imagic by the paper's recipe",
    "sdedit": "SDEdit",
    "ddib": "DDIB, which is told what the photograph shows",
    "nothing done": "the photograph, nothing done",
    "ceiling": "the truth, through the autoencoder",
}


def best(results: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Of each edit's seeds the one that a user would take, who does not know the truth."""

    def take(seeds: list[dict]) -> dict:
        taken = max(seeds, key=lambda e: (e["reached"], e["likeness"]))
        return {**taken, "seed": None}

    return {
        name: [take(list(seeds)) for _, seeds in itertools.groupby(each, lambda e: e["edit"])]
        for name, each in results.items()
    }


def table(results: dict[str, list[dict]]) -> dict[str, dict]:
    """Mean figures of each method."""
    rows = {}
    for name, each in results.items():
        row = {
            "success": float(np.mean([e["reached"] for e in each])),
            "kept": float(np.mean([e["reached"] and e["kept"] for e in each])),
            "seen_by_clip": float(np.mean([e["seen"] for e in each])),
            "psnr_to_truth": float(np.mean([e["psnr"] for e in each])),
            "ssim_to_truth": float(np.mean([e["ssim"] for e in each])),
        }
        for rival in ("sdedit", "ddib"):
            if rival in results and rival != name:
                # Of the edits that both have: what is dear was perhaps asked of fewer.
                theirs = {(e["edit"], e["seed"]): e["psnr"] for e in results[rival]}
                both = [(e["psnr"], theirs.get((e["edit"], e["seed"]))) for e in each]
                nearer = [own > other for own, other in both if other is not None]
                row[f"nearer_than_{rival}"] = float(np.mean(nearer))
        if name.startswith("imagic"):
            for figure in ("reconstruction", "autoencoder"):
                row[f"{figure}_psnr"] = float(np.mean([e[figure] for e in each]))
        rows[name] = row
    return rows


def for_readme(rows: dict[str, dict]) -> str:
    """The README's table, of the methods that were run."""
    lines = [
        "| | edit reached | and all else judged kept | PSNR to the truth | nearer to it than SDEdit"
        " | than DDIB | PSNR at eta 0 |",
        "|" + " --- |" * 7,
    ]
    for name, label in NAMES.items():
        if name in rows:
            row = rows[name]
            share = [row["success"], row["kept"]]
            beside = [row.get(f"nearer_than_{rival}") for rival in ("sdedit", "ddib")]
            percent = ["" if s is None else f"{100 * s:.0f} %" for s in (*share, *beside)]
            decibel = [
                f"{row[figure]:.1f} dB" if figure in row else ""
                for figure in ("psnr_to_truth", "reconstruction_psnr")
            ]
            cells = [label, *percent[:2], decibel[0], *percent[2:], decibel[1]]
            lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join(lines) + "\n"


def show(results: dict[str, list[dict]], *, into_readme: bool) -> None:
    """Print both tables, and write the first into the README if that is asked for."""
    means = table(results)
    taken = table(best(results))
    for title, rows in (("mean over the seeds", means), ("of all seeds one taken", taken)):
        print(title)
        _show(rows)
    if into_readme:
        command.into_readme("counterfactual", for_readme(means))


def _show(rows: dict[str, dict]) -> None:
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    width = max(map(len, rows))
    print(" | ".join(["method".ljust(width), *columns]))
    for name, row in rows.items():
        cells = [(f"{row[c]:.3f}" if c in row else "").ljust(len(c)) for c in columns]
        print(" | ".join([name.ljust(width), *cells]))


def write(path: Path, results: dict[str, list[dict]], network: str) -> None:
    """The table and all that it is made of."""
    command.write(
        path,
        {
            "methods": table(results),
            "best_of_seeds": table(best(results)),
            "edits": results,
            "network": network,
        },
    )


def merge(parts: list[Path]) -> tuple[dict[str, list[dict]], str]:
    """The results of several parts, edits in order."""
    results: dict[str, list[dict]] = {}
    for part in parts:
        said = json.loads(part.read_text())
        for name, each in said["edits"].items():
            results.setdefault(name, []).extend(each)
    return {n: sorted(each, key=lambda e: (e["edit"], e["seed"])) for n, each in results.items()}, (
        said["network"]
    )
