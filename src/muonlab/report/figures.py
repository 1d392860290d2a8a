"""Figures drawn twice from one description: PNGs by matplotlib, interactive ones by plotly."""

import html
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from plotly.io.json import to_json_plotly

from muonlab.report.content import (
    Curve,
    CurveFigure,
    Figure,
    IntervalFigure,
    Numbers,
    mean_and_half_width,
    mean_curve,
)

# Paul Tol's "bright" scheme: told apart by colour-blind readers, on light and on dark ground.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
MARKERS = ("o", "s", "D", "^", "X", "P", "*")  # the same, in matplotlib's names
DASHES = ("-", "--", ":", "-.")  # of the first, second … seven arms
DASH_NAMES = ("solid", "dash", "dot", "dashdot")  # the same, in plotly's names
MAX_MARKED_POINTS = 40  # denser curves are lines without markers
PNG_DPI = 150


def write_png(figure: Figure, path: Path) -> None:
    """Draw ``figure`` with its caption below, on white, 1200 pixels wide."""
    caption = textwrap.fill(figure.caption, 110)
    if isinstance(figure, IntervalFigure):
        lines = 0.25 * len(figure.values)  # inches of its rows
    else:
        lines = 0.17 * len(_by_arm(figure.curves))  # of its legend
    height = max(4.2, 1.6 + lines) + 0.16 * caption.count("\n")
    canvas = Canvas(figsize=(8, height), dpi=PNG_DPI, layout="constrained")
    axes = canvas.add_subplot()
    axes.set_title(figure.title, loc="left", fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if isinstance(figure, CurveFigure):
        _draw_curves(figure, axes)
    else:
        _draw_intervals(figure, axes)
    canvas.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color="#555555")
    canvas.savefig(path, metadata={"Software": None})  # equal data, equal bytes


def plotly_json(figure: Figure) -> dict[str, Any]:
    """``figure`` as plotly's data and layout; its colours of ground and text are the page's."""
    drawn = go.Figure()
    if isinstance(figure, CurveFigure):
        drawn.add_traces(list(_curve_traces(figure)))
        x_label, y_label = figure.x_label, figure.y_label
        drawn.update_layout(height=392 + 14 * len(_by_arm(figure.curves)))
        if is_crowded(figure):
            drawn.update_layout(legend_font_size=11)
        if figure.log_x:
            drawn.update_xaxes(type="log")
        for limit in figure.limits:
            drawn.add_vline(limit, line={"color": "#777777", "dash": "dot", "width": 1.5})
    else:
        drawn.add_traces(list(_interval_traces(figure)))
        x_label, y_label = figure.value_label, ""
        drawn.update_layout(height=160 + 40 * len(figure.values))
        drawn.update_yaxes(autorange="reversed", type="category", automargin=True)
    drawn.update_xaxes(title_text=x_label, automargin=True)
    drawn.update_yaxes(title_text=y_label, automargin=True)
    drawn.update_layout(
        template="none",
        hovermode="closest",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return json.loads(str(to_json_plotly(drawn)))


def is_crowded(figure: Figure) -> bool:
    """Whether there are more arms than colours, so that the legend wants room of its own."""
    return isinstance(figure, CurveFigure) and len(_by_arm(figure.curves)) > len(COLOURS)


def _by_arm(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return arms


def _joined(curves: Sequence[Curve]) -> tuple[Numbers, Numbers, NDArray[np.int32]]:
    """An arm's curves as one line with gaps, quicker to draw, and each point's seed."""
    x = np.concatenate([np.append(curve.x, np.nan) for curve in curves])[:-1]
    y = np.concatenate([np.append(curve.y, np.nan) for curve in curves])[:-1]
    seeds = np.concatenate([np.full(len(curve.x) + 1, curve.seed) for curve in curves])[:-1]
    return x, y, seeds.astype(np.int32)


def _draw_curves(figure: CurveFigure, axes: Axes) -> None:
    for index, (arm, curves) in enumerate(_by_arm(figure.curves).items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        mean = mean_curve(curves)
        x, y, _ = _joined(curves)
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
    elif axes.get_xlim()[1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for limit in figure.limits:
        axes.axvline(limit, color="#777777", linestyle=":", linewidth=1.2)
    if is_crowded(figure):
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.legend(frameon=False, fontsize=8).set_in_layout(False)


def _draw_intervals(figure: IntervalFigure, axes: Axes) -> None:
    for index, (_, values) in enumerate(figure.values.items()):
        colour = COLOURS[index % len(COLOURS)]
        middle, half = mean_and_half_width(np.array(values, dtype=float))
        axes.plot(values, [index] * len(values), "o", color=colour, markersize=4, alpha=0.5)
        axes.errorbar(middle, index, xerr=half, fmt="|", color=colour, markersize=14, capsize=5)
    axes.set_yticks(range(len(figure.values)), list(figure.values))
    axes.set_ylim(len(figure.values) - 0.5, -0.5)
    axes.set_xlabel(figure.value_label)


def _curve_traces(figure: CurveFigure) -> Iterator[go.Scatter]:
    for index, (arm, curves) in enumerate(_by_arm(figure.curves).items()):
        colour, symbol = COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]
        dash = DASH_NAMES[index // len(COLOURS) % len(DASHES)]
        name = html.escape(arm)  # plotly reads names as markup
        mean = mean_curve(curves)
        x, y, seeds = _joined(curves)
        mode = "lines"
        if mean is None and len(curves[0].x) <= MAX_MARKED_POINTS:
            mode = "lines+markers" if figure.joined else "markers"
        yield go.Scatter(
            x=x.astype(np.float32),  # half the page's bytes, finer than any screen
            y=y.astype(np.float32),
            customdata=seeds,
            mode=mode,
            marker={"symbol": symbol, "size": 7, "color": colour},
            line={"color": colour, "width": 1 if mean else 2, "dash": dash},
            opacity=0.5 if mean else 1,
            name=name,
            legendgroup=name,
            showlegend=mean is None,
            hovertemplate="%{y:.4f} at %{x:,.4~s}<br>seed %{customdata}",
        )
        if mean:
            x, middle, half = mean
            yield go.Scatter(
                x=np.concatenate([x, x[::-1]]),
                y=np.concatenate([middle - half, (middle + half)[::-1]]),
                fill="toself",
                fillcolor=colour,
                opacity=0.18,
                line={"width": 0},
                mode="lines",
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            )
            yield go.Scatter(
                x=x,
                y=middle,
                mode="lines",
                line={"color": colour, "width": 2.5, "dash": dash},
                name=f"{name} (mean)",
                legendgroup=name,
                hovertemplate=f"%{{y:.4f}} at %{{x:,.4~s}}<br>mean of {len(curves)}",
            )


def _interval_traces(figure: IntervalFigure) -> Iterator[go.Scatter]:
    for index, (arm, values) in enumerate(figure.values.items()):
        colour, name = COLOURS[index % len(COLOURS)], html.escape(arm)
        middle, half = mean_and_half_width(np.array(values, dtype=float))
        yield go.Scatter(
            x=list(values),
            y=[name] * len(values),
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.5},
            showlegend=False,
            name=name,
            hovertemplate="%{x:.4f}",
        )
        yield go.Scatter(
            x=[float(middle)],
            y=[name],
            error_x={"type": "data", "array": [float(half)], "thickness": 2, "width": 6},
            mode="markers",
            marker={"color": colour, "size": 14, "symbol": "line-ns-open", "line": {"width": 2}},
            showlegend=False,
            name=name,
            hovertemplate=f"mean %{{x:.4f}}, n = {len(values)}",
        )
