"""Every picture measured, and the means over the edits with their intervals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import bootstrap

from tedbench.measures import ALIGNMENT, Judge
from tedbench.page import BASELINES, OURS
from tedbench.protocol import METHODS, Protocol
from tedbench.store import Store, write

Row = dict[str, Any]
Found = dict[str, Any]

RESAMPLES = 9999
INTERVAL = f"95 %, bootstrap over the edits, percentiles of {RESAMPLES} resamples"
PACKAGES = (
    "numpy",
    "pillow",
    "scikit-image",
    "scipy",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
)


def score(store: Store, protocol: Protocol, judges: Sequence[Judge], name: str) -> None:
    """Measure an edit's pictures, unless just these have been measured by just this."""
    pictures = store.pictures_of(name, {method: protocol.settings(method) for method in METHODS})
    measures = {measure: about for judge in judges for measure, about in judge.about.items()}
    known = store.scores(name)
    if not pictures or (
        known.get("pictures") == [list(p) for p in pictures] and known.get("measures") == measures
    ):
        return
    about = store.record(name, pictures[0][0])
    files = [store.input(about["photograph"])]
    files += [store.picture(name, method, setting) for method, setting, _ in pictures]
    seen = [_opened(file) for file in files]
    values: dict[str, Any] = {}
    for judge in judges:
        values |= judge.measure(seen, about["text"], about["source"])
    rows = [{m: of[i] for m, of in values.items()} for i in range(len(seen))]
    store.keep_scores(name, {"pictures": pictures, "measures": measures, "rows": rows})


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def interval(values: Sequence[float]) -> list[float] | None:
    """The interval of the mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def means(store: Store, protocol: Protocol) -> Found:
    """Means over the edits of which every method that any edit has is there and measured.

    A method that failed on the hard photographs would else look better than the others.

    Returns:
        `protocol`, `measures` (what each is, by name), `interval` and `versions` (how), `edits`
        (names), `left_out` (why, by name), and `rows`: method, setting, its value, and each
        measure's `mean` and `interval`. The first row is the photograph itself.
    """
    scored = {name: store.scores(name) for name in store.names()}
    wanted = {m for each in scored.values() for m, *_ in each.get("pictures", ())}
    whole, left_out = {}, {}
    for name, each in scored.items():
        missing = [m for m in METHODS if m in wanted - {p[0] for p in each.get("pictures", ())}]
        if not each:
            left_out[name] = "nothing of it is done"
        elif missing:
            left_out[name] = "lacks " + ", ".join(missing)
        else:
            whole[name] = each
    kinds: list[Row] = [{"method": "photograph", "setting": "", "value": None}]
    kinds += [
        {"method": method, "setting": setting, "value": value}
        for method in METHODS if method in wanted
        for setting, value in protocol.settings(method).items()
    ]  # fmt: skip
    measures: dict[str, Any] = next((each["measures"] for each in whole.values()), {})
    return {
        "protocol": dataclasses.asdict(protocol),
        "measures": measures,
        "interval": INTERVAL,
        "versions": {package: version(package) for package in PACKAGES},
        "edits": list(whole),
        "left_out": left_out,
        "rows": [
            kind | _over_edits([each["rows"][i] for each in whole.values()], list(measures))
            for i, kind in enumerate(kinds)
        ],
    }


def _over_edits(rows: list[dict[str, float | None]], measures: list[str]) -> Row:
    mean: dict[str, float | None] = {}
    between: dict[str, list[float] | None] = {}
    for name in measures:
        values = [value for row in rows if (value := row[name]) is not None]
        mean[name] = sum(values) / len(values) if values else None
        between[name] = interval(values)
    return {"mean": mean, "interval": between}


def markdown(found: Found, protocol: Protocol) -> str:
    """The means as a table, and what they are means of."""
    names = list(found["measures"])
    lines = [f"| {' | '.join(['method', 'setting', *names])} |", "| --- " * (2 + len(names)) + "|"]
    for row in found["rows"]:
        setting = row["setting"].replace("_", " ")
        mark = " (shown to people)" if _is_shown(row, protocol) else ""
        cells = "".join(f" {_cell(row['mean'][n], row['interval'][n])} |" for n in names)
        lines.append(f"| {row['method']} | {setting}{mark} |{cells}")
    lines += [
        "",
        f"Means over {len(found['edits'])} edits with `{protocol.checkpoint}`. In brackets: "
        f"{found['interval']}.",
        "",
    ]
    for name, about in found["measures"].items():
        told = "; ".join(f"{key}: {value}" for key, value in about.items())
        lines.append(f"- **{name}**: {told}")
    lines.append(f"- versions: {', '.join(f'{p} {v}' for p, v in found['versions'].items())}")
    if ALIGNMENT not in {about["of"] for about in found["measures"].values()}:
        lines += [
            "",
            "Alignment to the text was not measured: no CLIP was named (`--clip`), and the usual "
            "one is not on this machine. Fidelity alone cannot tell a good edit from none.",
        ]
    lines += ["", *(f"Left out: {name} ({why})." for name, why in found["left_out"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _cell(mean: float | None, between: list[float] | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" + (f" ({between[0]:.4f} to {between[1]:.4f})" if between else "")


def _is_shown(row: Row, protocol: Protocol) -> bool:
    method = row["method"]
    return method in (OURS, *BASELINES) and row["setting"] == protocol.shown(method)


def report(store: Store, protocol: Protocol, judges: Sequence[Judge]) -> Found:
    """Measure what was not, write `scores.json`, `scores.md`; return the means."""
    for name in store.names():
        score(store, protocol, judges, name)
    found = means(store, protocol)
    write(store.folder / "scores.json", json.dumps(found, indent=1).encode())
    write(store.folder / "scores.md", markdown(found, protocol).encode())
    return found
