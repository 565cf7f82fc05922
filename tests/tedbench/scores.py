"""Fidelity and alignment of every picture, by the pack's own node, and their means."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tedbench.benchmark import Task
from tedbench.page import BASELINES, OURS
from tedbench.prompts import SCORED, score_prompt
from tedbench.protocol import METHODS, Protocol
from tedbench.servers import JobFailed, Worker
from tedbench.store import Store, write

Row = dict[str, Any]

ALIGNMENT = "CLIP score"


class ScoresDiffer(Exception):
    """Edits were scored by different measures, of which no mean can be taken."""


def read(outputs: dict[str, Any]) -> list[dict[str, float]]:
    """What Imagic Score Edits measured, to four decimals: a picture's values by measure, in order.

    Raises:
        JobFailed: the node of another version of the pack, which does not send its numbers.
    """
    (sent,) = outputs.get(SCORED, {}).get("scores") or [None]
    if sent is None:
        raise JobFailed("Imagic Score Edits sent no numbers: another version of the pack?")
    measures = json.loads(sent)["measures"]
    return [
        {name: round(value, 4) for name, value in zip(measures, row, strict=True)}
        for row in zip(*measures.values(), strict=True)
    ]


def score(server: Worker, store: Store, protocol: Protocol, edit: Task) -> None:
    """Score an edit's pictures on a server, unless just these have been scored.

    Raises:
        PromptRejected, JobFailed, ServerLost, Stopped: it did not come to that.
    """
    settings = {method: protocol.settings(method) for method in METHODS}
    pictures = store.pictures_of(edit.name, settings)
    known = store.scores(edit.name)
    # The node draws a curve, of three pictures or more; the photograph is the first.
    if len(pictures) < 2 or known.get("pictures") == [list(p) for p in pictures]:
        return
    lent = [
        server.lend(store.picture(edit.name, method, setting).read_bytes(), f"{sha}.png")
        for method, setting, sha in pictures
    ]
    # A name of its own: of what a server has in its cache, it does not send the numbers again.
    name = f"{uuid.uuid4().hex}{edit.picture.suffix}"
    photograph = server.lend(edit.picture.read_bytes(), name)
    prompt = score_prompt(protocol, photograph, edit.text, lent)
    outputs, _ = server.wait(server.submit(prompt))
    store.keep_scores(edit.name, {"pictures": pictures, "rows": read(outputs)})


def means(store: Store, protocol: Protocol) -> dict[str, Any]:
    """Means over the edits of which every method that any edit has is there and scored.

    A method that failed on the hard photographs would else look better than the others.

    Returns:
        `measures`, `edits` (names), `left_out` (why, by name), and `rows`: method, setting, its
        value, and each measure's mean. The first row is the photograph itself.

    Raises:
        ScoresDiffer: the measures are not everywhere the same.
    """
    scored = {name: store.scores(name) for name in store.names()}
    wanted = {m for each in scored.values() for m, *_ in each.get("pictures", ())}
    whole, left_out = {}, {}
    for name, each in scored.items():
        missing = [m for m in METHODS if m in wanted - {p[0] for p in each.get("pictures", ())}]
        if not each:
            left_out[name] = "not scored"
        elif missing:
            left_out[name] = "lacks " + ", ".join(missing)
        else:
            whole[name] = each["rows"]
    measures = {tuple(rows[0]): name for name, rows in whole.items()}
    if len(measures) > 1:
        told = "; ".join(f"'{name}' by {', '.join(found)}" for found, name in measures.items())
        raise ScoresDiffer(
            f"edits were scored by different measures: {told}. Install lpips in every server or "
            f"in none, remove {store.folder / 'scores'} and run again."
        )
    kinds: list[Row] = [{"method": "photograph", "setting": "", "value": None}]
    kinds += [
        {"method": method, "setting": setting, "value": value}
        for method in METHODS if method in wanted
        for setting, value in protocol.settings(method).items()
    ]  # fmt: skip
    names = list(next(iter(measures), ()))
    rows = [
        kind | {n: sum(e[i][n] for e in whole.values()) / len(whole) for n in names}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    return {"measures": names, "edits": list(whole), "left_out": left_out,
            "rows": rows if whole else []}  # fmt: skip


def markdown(found: dict[str, Any], protocol: Protocol) -> str:
    """The means as a table, and what they are means of."""
    names = found["measures"]
    lines = [f"| {' | '.join(['method', 'setting', *names])} |", "| --- " * (2 + len(names)) + "|"]
    for row in found["rows"]:
        setting = row["setting"].replace("_", " ")
        mark = " (shown to people)" if _is_shown(row, protocol) else ""
        cells = "".join(f" {row[name]:.4f} |" for name in names)
        lines.append(f"| {row['method']} | {setting}{mark} |{cells}")
    lines += ["", f"Means over {len(found['edits'])} edits with `{protocol.checkpoint}`."]
    if names:
        lines.append(
            f"Fidelity to the photograph is {names[0]}, measured at {protocol.size} x "
            f"{protocol.size}; 1 is the photograph itself."
        )
    if names and ALIGNMENT not in names:
        lines.append(
            "Alignment to the text was not measured: no CLIP was named (`--clip`). Fidelity alone "
            "cannot tell a good edit from none."
        )
    lines += [f"Left out: {name} ({why})." for name, why in found["left_out"].items()]
    return "\n".join(lines) + "\n"


def _is_shown(row: Row, protocol: Protocol) -> bool:
    method = row["method"]
    return method in (OURS, *BASELINES) and row["setting"] == protocol.shown(method)


def report(store: Store, protocol: Protocol) -> dict[str, Any]:
    """Write `scores.json`, `scores.md`; return the means."""
    found = means(store, protocol)
    write(store.folder / "scores.json", json.dumps(found, indent=1).encode())
    write(store.folder / "scores.md", markdown(found, protocol).encode())
    return found
