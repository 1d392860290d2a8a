"""The figures of one study: what every arm came to, over what its labels say, and its searches."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from muonlab.lab.experiment import Protocol, Study
from muonlab.lab.tuning import Box
from muonlab.report.content import Curve, CurveFigure, Figure, IntervalFigure
from muonlab.report.study_tables import (
    PROTOCOLS,
    arm_label,
    counted_losses,
    measure_column,
    paired,
)

MIN_LEVELS = 3  # of a label, to be an axis
LOG_RANGE = 20  # largest over smallest level from which on the axis is logarithmic


def value_figures(study: Study, frame: pd.DataFrame) -> list[Figure]:
    """The first measure of every arm, and the paired differences, each with its interval."""
    measure = measure_column(study.measures[0])
    arms = {
        arm_label(arm): list(_finite(frame.loc[frame["arm"] == arm.name, measure.key].to_numpy()))
        for arm in study.arms
        if measure.key in frame
    }
    pairs = {
        f"{comparison.arm} − {comparison.baseline}": list(_finite(paired(frame, comparison)))
        for comparison in study.comparisons
        if comparison.measure == measure.key and measure.key in frame
    }
    counted = counted_losses(frame) if measure.key == "loss" else []
    wanted = (
        ("values", f"{measure.heading} at the end", measure.heading, arms),
        ("differences", "Paired differences", f"difference: {measure.heading.lower()}", pairs),
    )
    return [
        IntervalFigure(
            name=name,
            title=title,
            value_label=label,
            caption="Points: seeds. Marks: mean and its 95 % t interval. Diverged runs are in the "
            f"table only.{_lines_text(counted) if name == 'values' else ''}",
            limits=[loss for _, _, loss in counted] if name == "values" else (),
            values={key: values for key, values in groups.items() if values},
            zero_line=name == "differences",
        )
        for name, title, label, groups in wanted
        if any(groups.values())
    ]


def _lines_text(counted: list[tuple[str, Protocol, float]]) -> str:
    """What the dotted lines are."""
    lines = [f"{label} {loss:.3f} ({PROTOCOLS[protocol]})" for label, protocol, loss in counted]
    return f" Dotted, what counting tokens comes to: {', '.join(lines)}." if lines else ""


def _finite(values: np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    return numbers[np.isfinite(numbers)]


def label_figures(study: Study, frame: pd.DataFrame) -> Iterator[Figure]:
    """The first measure over every label of numbers, such as a budget: a line for each setting
    of the other labels."""
    measure = measure_column(study.measures[0])
    if measure.key not in frame:
        return
    for label in dict.fromkeys(key for arm in study.arms for key in arm.labels):
        lines = _lines(study, label)
        levels = {level for line in lines.values() for level in line}
        curves = [
            curve
            for line, arms in lines.items()
            if len(arms) > 1
            for curve in _level_curves(frame, line, arms, measure.key)
        ]
        if len(levels) >= MIN_LEVELS and curves:
            yield CurveFigure(
                name=f"values-{label.replace(' ', '-')}",
                title=f"{measure.heading} by {label}",
                x_label=label,
                y_label=measure.heading.lower(),
                caption="Thin lines: seeds. Band: 95 % t interval. Diverged runs are in the table "
                "only.",
                curves=curves,
                log_x=max(levels) > LOG_RANGE * min(levels) > 0,
            )


def _lines(study: Study, label: str) -> dict[str, dict[float, str]]:
    """The arms that have a number as ``label``: the rest of their labels → the number → arm."""
    several = len({arm.protocol for arm in study.arms}) > 1
    lines: dict[str, dict[float, str]] = {}
    for arm in study.arms:
        level = arm.labels.get(label)
        if isinstance(level, int | float):
            rest = [f"{key} {value}" for key, value in arm.labels.items() if key != label]
            if several or not rest:
                rest.append(PROTOCOLS[arm.protocol])
            line = f"{arm_label(arm).removesuffix(arm.name)}{', '.join(rest)}"
            lines.setdefault(line, {})[level] = arm.name
    return lines


def _level_curves(
    frame: pd.DataFrame, line: str, arms: Mapping[float, str], key: str
) -> Iterator[Curve]:
    """A seed's values at every level that has one."""
    rows = frame.loc[frame["arm"].isin(list(arms.values())) & np.isfinite(frame[key]), :]
    levels = {arm: level for level, arm in arms.items()}
    for seed, group in rows.groupby("seed"):
        points = sorted(zip((levels[arm] for arm in group["arm"]), group[key], strict=True))
        x, y = np.array(points, dtype=float).T
        yield Curve(arm=line, seed=int(str(seed)), x=x, y=y)


def search_figures(
    study: Study, trials: pd.DataFrame, spaces: Mapping[str, Box]
) -> Iterator[Figure]:
    """Loss over every searched field of every arm, the chosen value and the range's edges."""
    for arm in study.arms:
        tried = [row for row in trials.to_dict("records") if row["arm"] == arm.name]
        shown = [row for row in tried if math.isfinite(row["loss"])]
        if arm.search is None or not shown:
            continue
        for field, limits in spaces[arm.name].items():
            key = f"tuned/{field}"
            lost = [f"{row[key]:.3g}" for row in tried if math.isinf(row["loss"])]
            diverged = f"Diverged at {', '.join(lost)}. " if lost else ""
            points = {
                "trials": [row for row in shown if row["kind"] == "trial"],
                "repeats": [row for row in shown if row["kind"] == "repeat"],
                "chosen": [row for row in shown if row["chosen"] and row["kind"] == "trial"],
            }
            yield CurveFigure(
                name=f"search-{arm.name}-{field}",
                title=f"{arm.name}: search of {field}",
                x_label=field,
                y_label=measure_column(arm.search.measure).heading.lower(),
                caption="Dotted: the edges of the range searched. Repeats: the best trials again, "
                f"with other seeds; their mean chooses. {diverged}",
                curves=[
                    _trials_curve(name, rows, key, arm.search.seed)
                    for name, rows in points.items()
                    if rows
                ],
                log_x=True,
                limits=limits,
                joined=len(arm.search.space) == 1,  # else neighbours differ in the other fields
            )


def _trials_curve(name: str, rows: Sequence[dict[Hashable, Any]], key: str, seed: int) -> Curve:
    x, y = np.array(sorted((row[key], row["loss"]) for row in rows)).T
    return Curve(arm=name, seed=seed, x=x, y=y)
