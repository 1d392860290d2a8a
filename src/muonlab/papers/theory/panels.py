"""The look of the checks' figures: labelled axes, colours that colour-blind readers tell apart."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
MARKERS = ("o", "s", "D", "^", "X", "P", "v")


def panels(count: int, caption: str, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in ``rows``; ``caption`` (seeds, n, units) stands below."""
    columns = count // rows
    figure = Figure(figsize=(1.2 + 4.6 * columns, 0.6 + 3.8 * rows), layout="constrained", dpi=130)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in axes:
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    caption = textwrap.fill(caption, 65 * columns)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color="#555555")
    return figure, axes


def label(panel: Axes, title: str, x: str, y: str) -> None:
    """Title and axes of a panel, and its legend."""
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7.5, frameon=False)
