"""Fidelity and alignment over eta, means over the benchmark: the paper's figure 9."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from tedbench.scores import ALIGNMENT

COLOURS = ("#1f5faa", "#c85a0a")
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
    left.set_title(f"mean of {len(found['edits'])} edits", loc="left")
    left.axvspan(*PAPER_RANGE, color="#e8f0e6", label="the paper's usual range")
    for place, (measure, colour) in enumerate(zip(found["measures"], COLOURS, strict=False)):
        axes = left.twinx() if place else left
        for method, rows in lines.items():
            axes.plot(
                [row["value"] for row in rows],
                [row[measure] for row in rows],
                **_style(method, colour),
            )
        if measure != ALIGNMENT:
            # Fidelity is 1 for the photograph itself: small differences shall look small.
            axes.set_ylim(min(axes.dataLim.y0, 0), 1)
        axes.set_ylabel(measure if measure == ALIGNMENT else f"fidelity ({measure})", color=colour)
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
