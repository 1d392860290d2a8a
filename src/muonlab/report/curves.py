"""Curves of runs: from rows of metrics to figures, thin enough for a page of two hundred runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from muonlab.report.content import Curve, CurveFigure, Numbers

MAX_CURVE_POINTS = 100
MAX_FIGURE_POINTS = 1600  # of all curves together: a page of 165 runs stays below 1 MB
LEAST_CURVE_POINTS = 12
Wanted = tuple[str, str, str, str]  # metric, file name, title, axis label

CURVES: tuple[Wanted, ...] = (
    ("val/loss", "validation-loss", "Validation loss", "validation loss (nats/token)"),
    ("train/loss", "training-loss", "Training loss", "training loss (nats/token)"),
)
EXPERT_CURVES: tuple[Wanted, ...] = (
    ("moe/load_cv", "load-cv", "Unevenness of the experts' load", "coefficient of variation"),
    ("moe/max_load", "max-load", "Load of the busiest expert", "times the even share"),
    ("moe/dead_experts", "dead-experts", "Experts that got no token", "share of all experts"),
    ("moe/router_entropy", "router-entropy", "Router entropy", "entropy (nats)"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One run's rows of metrics. Series of the same ``arm`` are its seeds."""

    arm: str
    seed: int
    metrics: pd.DataFrame


def curve_figures(
    series: Sequence[Series], wanted: Sequence[Wanted], *, with_seconds: bool
) -> list[CurveFigure]:
    """Each metric over tokens and, if wanted, seconds; what no run has is left out.

    The validation loss before training is left out, so that later differences can be seen.
    """
    axes = [("tokens", "tokens", "training tokens")]
    if with_seconds:
        axes.append(("time", "seconds", "training time (s)"))
    share = MAX_FIGURE_POINTS // max(len(series), 1)
    most = min(max(share, LEAST_CURVE_POINTS), MAX_CURVE_POINTS)
    figures: list[CurveFigure] = []
    for metric, name, title, y_label in wanted:
        for key, unit, x_label in axes:
            curves = [
                Curve(arm=one.arm, seed=one.seed, x=x, y=y)
                for one in series
                if key != "time" or clock_runs_forwards(one.metrics)
                for x, y in [_points(one.metrics, key, metric, most)]
                if len(x)
            ]
            if curves:
                figures.append(
                    CurveFigure(
                        name=f"{name}-{unit}",
                        title=f"{title} against {x_label.removesuffix(' (s)')}",
                        x_label=x_label,
                        y_label=y_label,
                        curves=curves,
                        from_zero=metric.startswith("moe/"),
                        label_ends=metric.endswith("/loss"),
                    )
                )
    return figures


def clock_runs_forwards(metrics: pd.DataFrame) -> bool:
    """False if ``time`` ever falls: then nothing may be drawn against it."""
    return "time" not in metrics or bool(metrics["time"].dropna().is_monotonic_increasing)


def _points(metrics: pd.DataFrame, x_key: str, metric: str, most: int) -> tuple[Numbers, Numbers]:
    """A curve of at most ``most`` points: longer ones become means of chunks."""
    if x_key not in metrics or metric not in metrics:
        return np.empty(0), np.empty(0)
    if metric == "val/loss" and metrics.loc[metrics["step"] > 0, metric].count() > 1:
        metrics = metrics.loc[metrics["step"] > 0]
    points = metrics[[x_key, metric]].to_numpy(dtype=float)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) > most:
        chunks = np.array_split(points, most)
        points = np.stack([chunk.mean(axis=0) for chunk in chunks])
    return points[:, 0], points[:, 1]
