"""Fidelity and alignment over eta, means over the edits: the paper's figure 9."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from tedbench.measures import ALIGNMENT, FIDELITY

COLOURS = {FIDELITY: "#1f5faa", ALIGNMENT: "#c85a0a"}
METHODS = {"imagic": "fine-tuned", "imagic_without_b": "without stage B"}
PAPER_RANGE = (0.6, 0.8)


def picture(found: dict[str, Any]) -> Figure | None:
    """Draw the means over eta.

    Args:
        found: what ``scores.means`` returns.

    Returns:
        None where there are fewer than two eta.
    """
    lines = {m: [r for r in found["rows"] if r["method"] == m] for m in METHODS}
    lines = {m: sorted(rows, key=lambda r: r["value"]) for m, rows in lines.items() if rows}
    etas = sorted({row["value"] for rows in lines.values() for row in rows})
    if len(etas) < 2:
        return None
    figure = Figure(figsize=(9, 5.8), layout="constrained")
    left = figure.subplots()
    left.set_title(f"mean of {len(found['edits'])} edits, 95 % intervals", loc="left")
    left.axvspan(*PAPER_RANGE, color="#e8f0e6", label="the paper's usual range")
    shown = [(m, a["of"]) for m, a in found["measures"].items() if a["of"] in COLOURS]
    for place, (measure, of) in enumerate(shown):
        colour = COLOURS[of]
        axes = left.twinx() if place else left
        for method, rows in lines.items():
            across = [row["value"] for row in rows]
            means = [row["mean"][measure] for row in rows]
            axes.plot(across, means, **_style(method, colour))
            if all(row["interval"][measure] for row in rows):
                low, high = zip(*(row["interval"][measure] for row in rows), strict=True)
                axes.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
        if of == FIDELITY:
            # It is 1 for the photograph itself: small differences shall look small.
            axes.set_ylim(min(axes.dataLim.y0, 0), 1)
        axes.set_ylabel(f"{of}: {measure}", color=colour)
        axes.tick_params(axis="y", colors=colour)
    left.set_xlabel("eta")
    left.set_xticks(etas, [f"{eta:g}" for eta in etas])
    left.set_xlim(etas[0], etas[-1])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _style(method: str, colour: str) -> dict[str, Any]:
    ours = method == "imagic"
    return {
        "label": METHODS[method],
        "color": colour,
        "linestyle": "solid" if ours else "dashed",
        "marker": "o",
        "markerfacecolor": colour if ours else "white",
        "clip_on": False,
    }
