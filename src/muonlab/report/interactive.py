"""The same figures as plotly's data and layout, for a reader who wants to zoom and read values.

Plain data: colours are the page's own, written ``var(--c0)``, and put in by the page's script.
"""

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from muonlab.report.content import (
    CurveFigure,
    Figure,
    IntervalFigure,
    Numbers,
    mean_and_half_width,
    mean_curve,
)
from muonlab.report.figures import COLOURS, DASHES, MAX_MARKED_POINTS, by_arm, joined

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
DASH_NAMES = ("solid", "dash", "dot", "dashdot")  # DASHES, in plotly's names


def plotly_figure(figure: Figure, order: Mapping[str, int]) -> dict[str, Any]:
    """``figure`` as plotly's ``data`` and ``layout``; ``order`` as for the still picture."""
    axis = {"automargin": True, "gridcolor": "var(--line)", "zeroline": False}
    x_axis: dict[str, Any] = dict(axis)
    y_axis: dict[str, Any] = dict(axis)
    shapes: list[dict[str, Any]] = []
    height = 380
    if isinstance(figure, CurveFigure):
        data = list(_curves(figure, order))
        labels = figure.x_label, figure.y_label
        if figure.log_x:
            x_axis["type"] = "log"
        if figure.from_zero:
            y_axis["rangemode"] = "tozero"
        shapes += [_line("x", limit) for limit in figure.limits]
        shapes += [_line("y", figure.mark.y)] if figure.mark else []
    else:
        data = list(_intervals(figure))
        labels = figure.value_label, ""
        height = 130 + 34 * len(figure.values)
        y_axis |= {"autorange": "reversed", "type": "category"}
        shapes += [_line("x", 0)] if figure.zero_line else []
        shapes += [_line("x", limit) for limit in figure.limits]
    x_axis["title"], y_axis["title"] = ({"text": html.escape(label)} for label in labels)
    layout = {
        "height": height,
        "hovermode": "closest",
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "font": {"color": "var(--text)", "size": 13},
        "xaxis": x_axis,
        "yaxis": y_axis,
        "shapes": shapes,
    }
    return {"data": data, "layout": layout}


def _line(across: str, value: float) -> dict[str, Any]:
    """A dotted line over the whole figure at ``value`` of the axis ``across``."""
    other = "y" if across == "x" else "x"
    return {
        "type": "line",
        f"{across}0": value,
        f"{across}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": "var(--soft)", "dash": "dot", "width": 1.5},
    }


def _numbers(values: Numbers) -> list[float | None]:
    """Six digits, finer than any screen; a gap is None."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _curves(figure: CurveFigure, order: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for arm, curves in by_arm(figure.curves).items():
        index = order[arm]
        colour = f"var(--c{index % len(COLOURS)})"
        dash = DASH_NAMES[index // len(COLOURS) % len(DASHES)]
        name = html.escape(arm)  # plotly reads names as markup
        mean = mean_curve(curves)
        x, y, seeds = joined(curves)
        mode = "lines"
        if mean is None and len(curves[0].x) <= MAX_MARKED_POINTS:
            mode = "lines+markers" if figure.joined else "markers"
        yield {
            "x": _numbers(x),
            "y": _numbers(y),
            "customdata": seeds.tolist(),
            "mode": mode,
            "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7, "color": colour},
            "line": {"color": colour, "width": 1 if mean else 2, "dash": dash},
            "opacity": 0.5 if mean else 1,
            "name": name,
            "hovertemplate": "%{y:.4f} at %{x:,.4~s}<br>seed %{customdata}",
        }
        if mean:
            x, middle, half = mean
            yield {
                "x": _numbers(np.concatenate([x, x[::-1]])),
                "y": _numbers(np.concatenate([middle - half, (middle + half)[::-1]])),
                "fill": "toself",
                "fillcolor": colour,
                "opacity": 0.18,
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
            }
            yield {
                "x": _numbers(x),
                "y": _numbers(middle),
                "mode": "lines",
                "line": {"color": colour, "width": 2.5, "dash": dash},
                "name": f"{name} (mean)",
                "hovertemplate": f"%{{y:.4f}} at %{{x:,.4~s}}<br>mean of {len(curves)}",
            }


def _intervals(figure: IntervalFigure) -> Iterator[dict[str, Any]]:
    for index, (arm, values) in enumerate(figure.values.items()):
        colour, name = f"var(--c{index % len(COLOURS)})", html.escape(arm)
        middle, half = mean_and_half_width(np.array(values, dtype=float))
        yield {
            "x": _numbers(np.array(values, dtype=float)),
            "y": [name] * len(values),
            "mode": "markers",
            "marker": {"color": colour, "size": 7, "opacity": 0.5},
            "name": name,
            "hovertemplate": "%{x:.4f}",
        }
        yield {
            "x": _numbers(np.array([middle])),
            "y": [name],
            "error_x": {
                "type": "data",
                "array": _numbers(np.array([half])),
                "thickness": 2,
                "width": 6,
            },
            "mode": "markers",
            "marker": {
                "color": colour,
                "size": 14,
                "symbol": "line-ns-open",
                "line": {"width": 2, "color": colour},
            },
            "name": name,
            "hovertemplate": f"mean %{{x:.4f}}, n = {len(values)}",
        }
