"""Figures drawn by matplotlib from one description: PNGs for Markdown, SVGs for the page."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, NullFormatter
from numpy.typing import NDArray

from muonlab.report.content import (
    Curve,
    CurveFigure,
    Figure,
    IntervalFigure,
    Mark,
    Numbers,
    arms_of,
    mean_and_half_width,
    mean_curve,
)

# Told apart by colour-blind readers, and at least 3 : 1 on white; page.css has lighter ones too.
COLOURS = ("#2f6db3", "#c93a55", "#1f7a34", "#8f7000", "#0b7f9c", "#9a3070", "#5f6873")
MARKERS = ("o", "s", "D", "^", "X", "P", "*")
DASHES = ("-", "--", ":", "-.")  # of the first, second … seven arms
MAX_MARKED_POINTS = 40  # denser curves are lines without markers
MAX_LABELLED_ARMS = 6  # more end labels would lie on each other
LABEL_GAP = 0.055  # least distance of two end labels, as a share of the axis
PNG_DPI = 150
TEXT, SOFT, LINE = "#1b1f24", "#555555", "#dddddd"
# Colours that stand for the page's own in an SVG: text, soft text, grid, then the arms.
PLACEHOLDERS = {"#0a0b01": "text", "#0a0b02": "soft", "#0a0b03": "line"} | {
    f"#0a0c{index:02x}": f"c{index}" for index in range(len(COLOURS))
}


def write_png(figure: Figure, path: Path, circumstances: str) -> None:
    """Draw ``figure`` on white, 1200 pixels wide, with its caption and circumstances below."""
    caption = textwrap.fill(f"{figure.caption} {circumstances}".strip(), 110)
    num_rows = len(figure.values) if isinstance(figure, IntervalFigure) else 0
    num_lines = len(arms_of([figure]))  # of the legend
    height = max(4.2, 1.6 + 0.25 * num_rows + 0.17 * num_lines) + 0.16 * caption.count("\n")
    order = {arm: index for index, arm in enumerate(arms_of([figure]))}
    with matplotlib.rc_context({"text.parse_math": False}):
        canvas = Canvas(figsize=(8, height), dpi=PNG_DPI, layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(figure.title, loc="left", fontweight="bold")
        _draw(figure, axes, _Look(COLOURS, TEXT, SOFT, LINE, 9), order)
        if num_lines > len(COLOURS):
            axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        elif num_lines:
            axes.legend(frameon=False, fontsize=8).set_in_layout(False)
        canvas.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color=SOFT)
        canvas.savefig(path, metadata={"Software": None})  # equal data, equal bytes


def svg(figure: Figure, order: Mapping[str, int]) -> str:
    """``figure`` without title and legend, in the page's colours, about 390 pixels wide.

    ``order`` gives each arm its colour, marker and dash; the page shows them once a section.
    """
    num_rows = len(figure.values) if isinstance(figure, IntervalFigure) else 0
    text, soft, line, *colours = PLACEHOLDERS
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": figure.name, "text.parse_math": False}
    ):
        height = max(3.3, 1 + 0.26 * num_rows)
        canvas = Canvas(figsize=(5.2, height), dpi=72, layout="constrained")
        _draw(figure, canvas.add_subplot(), _Look(tuple(colours), text, soft, line, 9.5), order)
        drawn = io.StringIO()
        canvas.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    picture = drawn.getvalue()
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", picture, flags=re.S)
    picture = re.sub(r'<g id="[^"]*">', "<g>", picture)  # ids are the page's own
    picture = re.sub(r" font-family: [^;\"]*;", "", picture)  # the page's own
    picture = re.sub(r"<[^>]*>", _with_tenths, picture)  # not the text between the tags
    picture = re.sub(r"\s*\n\s*", "\n", picture)
    picture = re.sub(r'(?<=d=")M [-\d. \nML]*', _without_repeated_l, picture)
    for placeholder, name in PLACEHOLDERS.items():
        picture = picture.replace(placeholder, f"var(--{name})")
    return picture.replace("<svg ", '<svg role="img" ', 1)


def _with_tenths(tag: re.Match[str]) -> str:
    """Coordinates to a tenth of a point, finer than any screen."""
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", tag[0])


def _without_repeated_l(path: re.Match[str]) -> str:
    """A path of straight lines: pairs of numbers after the first are lines without saying so."""
    return path[0].replace("\nL ", " ")


class _Look:
    """The colours and the size of text of one drawing."""

    def __init__(
        self, colours: Sequence[str], text: str, soft: str, line: str, font_size: float
    ) -> None:
        self.colours, self.text, self.soft, self.line = colours, text, soft, line
        self.font_size = font_size


def by_arm(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return arms


def joined(curves: Sequence[Curve]) -> tuple[Numbers, Numbers, NDArray[np.int32]]:
    """An arm's curves as one line with gaps, quicker to draw, and each point's seed."""
    x = np.concatenate([np.append(curve.x, np.nan) for curve in curves])[:-1]
    y = np.concatenate([np.append(curve.y, np.nan) for curve in curves])[:-1]
    seeds = np.concatenate([np.full(len(curve.x) + 1, curve.seed) for curve in curves])[:-1]
    return x, y, seeds.astype(np.int32)


def end_labels(figure: CurveFigure) -> list[tuple[str, float]]:
    """Every arm's last value, the highest first; none where they would not find room."""
    arms = by_arm(figure.curves)
    if not figure.label_ends or len(arms) > MAX_LABELLED_ARMS:
        return []
    ends: dict[str, float] = {}
    for arm, curves in arms.items():
        mean = mean_curve(curves)
        ends[arm] = float(mean[1][-1] if mean else curves[0].y[-1])
    return sorted(ends.items(), key=lambda item: -item[1])


def _draw(figure: Figure, axes: Axes, look: _Look, order: Mapping[str, int]) -> None:
    axes.grid(color=look.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=look.text, labelsize=look.font_size)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(look.soft)
    if isinstance(figure, CurveFigure):
        _draw_curves(figure, axes, look, order)
    else:
        _draw_intervals(figure, axes, look)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(look.text)
        axis.label.set_fontsize(look.font_size)


def _draw_curves(figure: CurveFigure, axes: Axes, look: _Look, order: Mapping[str, int]) -> None:
    for arm, curves in by_arm(figure.curves).items():
        index = order[arm]
        colour, marker = look.colours[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        mean = mean_curve(curves)
        x, y, _ = joined(curves)
        axes.plot(
            x,
            y,
            color=colour,
            marker=None if mean or len(curves[0].x) > MAX_MARKED_POINTS else marker,
            markersize=4,
            linestyle=dash if figure.joined else "none",
            linewidth=0.6 if mean else 1.6,
            alpha=0.5 if mean else 1,
            label=None if mean else arm,
        )
        if mean:
            x, middle, half = mean
            axes.plot(x, middle, dash, color=colour, linewidth=1.8, label=f"{arm} (mean)")
            axes.fill_between(
                x, middle - half, middle + half, color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if figure.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif axes.get_xlim()[1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if figure.from_zero:
        highest = max(float(curve.y.max()) for curve in figure.curves)
        axes.set_ylim(0, 1.05 * highest if highest > 0 else 1)
    for limit in figure.limits:
        axes.axvline(limit, color=look.soft, linestyle=":", linewidth=1.2)
    if figure.mark:
        _draw_mark(figure.mark, axes, look)
    _draw_end_labels(figure, axes, look)


def _draw_mark(mark: Mark, axes: Axes, look: _Look) -> None:
    left, right = axes.get_xlim()
    late = mark.x > (left + right) / 2
    axes.axhline(mark.y, color=look.soft, linestyle=":", linewidth=1)
    axes.plot(mark.x, mark.y, "o", color=look.text, markersize=8, fillstyle="none")
    axes.annotate(
        mark.text,
        (mark.x, mark.y),
        xytext=(-6, -9) if late else (6, 9),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top" if late else "bottom",
        fontsize=look.font_size,
        color=look.text,
    )


def _draw_end_labels(figure: CurveFigure, axes: Axes, look: _Look) -> None:
    low, high = axes.get_ylim()
    place = np.inf
    for _, value in end_labels(figure):
        place = min((value - low) / (high - low), place - LABEL_GAP)
        axes.text(
            1.01,
            place,
            f"{value:.3f}",
            transform=axes.transAxes,
            va="center",
            fontsize=look.font_size,
            color=look.text,
        )


def _draw_intervals(figure: IntervalFigure, axes: Axes, look: _Look) -> None:
    if figure.zero_line:
        axes.axvline(0, color=look.text, linewidth=1)
    for limit in figure.limits:
        axes.axvline(limit, color=look.soft, linestyle=":", linewidth=1.2)
    for index, values in enumerate(figure.values.values()):
        colour = look.colours[index % len(COLOURS)]
        middle, half = mean_and_half_width(np.array(values, dtype=float))
        axes.plot(values, [index] * len(values), "o", color=colour, markersize=4, alpha=0.5)
        axes.errorbar(middle, index, xerr=half, fmt="|", color=colour, markersize=14, capsize=5)
    axes.set_yticks(range(len(figure.values)), [_shortened(name) for name in figure.values])
    axes.set_ylim(len(figure.values) - 0.5, -0.5)
    axes.set_xlabel(figure.value_label)


def _shortened(name: str) -> str:
    """A name in lines that leave room for the figure."""
    return "\n".join(textwrap.wrap(name, 24))
