"""From people's choices to preference rates with 95 % intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tedbench.page import BASELINES, NAMES
from tedbench.store import write


class AnswersError(Exception):
    """A file that is not a person's answers to this page."""


def wilson(chosen: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), both ends in 0..1; of nothing, all of 0..1."""
    # Takes seconds to load, of which the other commands have no use.
    from scipy.stats import binomtest

    if not of:
        return 0.0, 1.0
    found = binomtest(chosen, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def read(files: list[Path], key: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everyone's answers: a side by token, by person. A person's later file adds to the earlier.

    Raises:
        AnswersError: a file is none of the page's, or of another run's page.
    """
    people: dict[str, dict[str, str]] = {}
    for file in files:
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            run, person, answers = told["run"], told["person"], dict(told["answers"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AnswersError(f"{file} is not a file of answers: {error!r}") from None
        if run != key["run"]:
            raise AnswersError(f"{file} answers the page of another run: {run}, not {key['run']}")
        for token, side in answers.items():
            if token not in key["trials"] or side not in ("left", "right"):
                raise AnswersError(f"{file}: '{token}: {side}' is no choice of this page")
        people.setdefault(person, {}).update(answers)
    return people


def rates(people: dict[str, dict[str, str]], key: dict[str, Any]) -> list[dict[str, Any]]:
    """How often Imagic was preferred over each baseline, and of both, by all people together."""
    tally = {baseline: [0, 0] for baseline in BASELINES}
    for answers in people.values():
        for token, side in answers.items():
            trial = key["trials"][token]
            tally[trial["baseline"]][0] += side == trial["ours"]
            tally[trial["baseline"]][1] += 1
    rows = [(NAMES[baseline], counts) for baseline, counts in tally.items()]
    rows.append(("both", [sum(counts) for counts in zip(*tally.values(), strict=True)]))
    return [
        {"over": name, "preferred": chosen, "choices": of, "rate": chosen / of if of else None,
         "interval": list(wilson(chosen, of))}
        for name, (chosen, of) in rows
    ]  # fmt: skip


def markdown(rows: list[dict[str, Any]], people: int) -> str:
    """The rates as a table."""
    lines = ["| Imagic preferred over | rate | 95 % interval | choices |"]
    lines.append("| --- " * 4 + "|")
    for row in rows:
        rate = "" if row["rate"] is None else f"{row['rate']:.1%}"
        low, high = row["interval"]
        lines.append(f"| {row['over']} | {rate} | {low:.1%} to {high:.1%} | {row['choices']} |")
    lines += [
        "",
        f"Choices of {people} {'person' if people == 1 else 'people'}. The intervals are Wilson's "
        "and take every choice as independent of the others; several people's choices about one "
        "picture are not quite.",
    ]
    return "\n".join(lines) + "\n"


def report(folder: Path, files: list[Path], key: dict[str, Any]) -> str:
    """Write `preferences.json`, `preferences.md`; return the latter.

    Raises:
        AnswersError: of a file.
    """
    people = read(files, key)
    rows = rates(people, key)
    text = markdown(rows, len(people))
    content = {"people": len(people), "rates": rows}
    write(folder / "preferences.json", json.dumps(content, indent=1).encode())
    write(folder / "preferences.md", text.encode())
    return text
