"""Numbers that have to lie within bounds, slopes among them, and the verdict that they amount to.

A theorem's check measures; `judge_findings` makes the verdict from the findings alone, by one rule
for all checks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from muonlab.lab.experiment import Finding, Role, Verdict, VerdictName

Row = dict[str, float | int | str]
MIN_POINTS = 5  # of a fitted slope


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """A power law y ∝ x^value fitted to logarithms; ``problem`` where it is no fit to rely on."""

    value: float
    interval: tuple[float, float] | None
    num_points: int
    problem: str = ""

    def finding(
        self,
        name: str,
        about: str,
        *,
        low: float | None = None,
        high: float | None = None,
        role: Role = "claim",
    ) -> Finding:
        """The slope as a finding; one less certain than its accepted interval is a problem."""
        problem = self.problem
        if not problem and role != "note" and self.interval and low is not None:
            allowed = (high if high is not None else math.inf) - low
            width = self.interval[1] - self.interval[0]
            if width > allowed:
                problem = (
                    f"its 95 % interval {self.interval[0]:.2f} to {self.interval[1]:.2f} is wider "
                    f"than the accepted one"
                )
        return Finding(
            name=name,
            value=self.value,
            about=about,
            role=role,
            low=low,
            high=high,
            interval=self.interval,
            problem=problem,
        )


def fit_slope(x: Sequence[float], y: Sequence[float], groups: Sequence[int] = ()) -> Slope:
    """Least squares of log y on log x, with a 95 % interval; repeated x are separate samples.

    ``groups``: samples of one group (a seed measured at every x) share a factor of their own.
    """
    distinct = len(set(x))
    finite = all(math.isfinite(value) and value > 0 for value in (*x, *y))
    if distinct < MIN_POINTS or not finite:
        reason = (
            f"a slope needs {MIN_POINTS} points, {distinct} were measured"
            if distinct < MIN_POINTS
            else "some values are zero, negative or not finite: no power law can be fitted"
        )
        return Slope(value=math.nan, interval=None, num_points=distinct, problem=reason)
    labels = np.asarray(groups or [0] * len(x))
    log_x, log_y = np.log(x), np.log(y)
    for group in np.unique(labels):
        log_x[labels == group] -= log_x[labels == group].mean()
        log_y[labels == group] -= log_y[labels == group].mean()
    value = float(log_x @ log_y / (log_x @ log_x))
    freedom = len(x) - 1 - len(np.unique(labels))
    rest = log_y - value * log_x
    error = math.sqrt(float(rest @ rest) / freedom / float(log_x @ log_x))
    half_width = float(stats.t.ppf(0.975, freedom)) * error
    return Slope(
        value=value, interval=(value - half_width, value + half_width), num_points=distinct
    )


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Rows as dictionaries; a row has NaN in the columns that only others use."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def judge_findings(claim: str, findings: Sequence[Finding], sentence: str) -> Verdict:
    """The verdict on ``claim`` that findings amount to; its rule says which of them decided.

    A failed requirement, or a claim or direction that cannot be judged: inconclusive. Else all
    claims hold: reproduced. Else every direction holds, and there is one: direction only.
    Else: refuted.
    """
    name, reason = _decide(findings)
    return Verdict(
        claim=claim,
        verdict=name,
        sentence=sentence,
        rule=f"Every number lies within its bounds; decided by: {reason}.",
        findings=tuple(findings),
    )


def _decide(findings: Sequence[Finding]) -> tuple[VerdictName, str]:
    for found in findings:
        if found.role == "note":
            continue
        problem = found.problem
        if not problem and not math.isfinite(found.value):
            problem = "its value is not finite"
        if not problem and found.role == "requirement" and not found.passed:
            problem = f"it is {found.value:.3g}, required is {found.expected}"
        if problem:
            return "inconclusive", f"{found.name}: {problem}"
    claims = [found for found in findings if found.role == "claim"]
    directions = [found for found in findings if found.role == "direction"]
    if not claims:
        return "inconclusive", "nothing that the claim says was measured"
    failed = [found for found in claims if not found.passed]
    if not failed:
        return "reproduced", f"all {len(claims)} findings of the claim lie where it says"
    against = "; ".join(_said(found) for found in failed)
    if directions and all(found.passed for found in directions):
        return "direction only", f"{against}; but {_said(directions[0])}"
    return "refuted", "; ".join([against, *(_said(f) for f in directions if not f.passed)])


def _said(found: Finding) -> str:
    value = found.value if abs(found.value) > 1e-12 else 0.0  # rounding is no finding
    return f"{found.name} is {value:.3g} (expected {found.expected})"
