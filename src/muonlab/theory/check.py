"""What a check is: a claim, the theorem behind it, what is measured, and the verdict that follows.

A check's ``run`` only measures. `judge` makes the verdict, from the measures alone, by one rule for
all checks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from muonlab.lab.experiment import VerdictName

# requirement: without it nothing can be said; claim: what the paper says, in its own strength;
# direction: the weaker statement that may hold where the claim does not; note: reported only.
Role = Literal["requirement", "claim", "direction", "note"]
Row = dict[str, float | int | str]

MIN_POINTS = 5  # of a fitted slope


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number and where it has to lie: ``low`` ≤ ``value`` ≤ ``high``, None for no bound.

    ``about`` says what it is and why that interval. ``problem`` says why it cannot be judged.
    ``interval``: 95 % confidence, where there is one.
    """

    name: str
    value: float
    about: str
    role: Role = "claim"
    low: float | None = None
    high: float | None = None
    interval: tuple[float, float] | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        if self.role != "note" and self.low is None and self.high is None:
            raise ValueError(f"measure {self.name!r}: a {self.role} needs low or high")

    @property
    def passed(self) -> bool:
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return above and below and math.isfinite(self.value) and not self.problem

    @property
    def expected(self) -> str:
        """The interval in words."""
        if self.low is None and self.high is None:
            return "reported only"
        if self.low is None:
            return f"at most {self.high:.12g}"
        if self.high is None:
            return f"at least {self.low:.12g}"
        return f"{self.low:.12g} to {self.high:.12g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """A power law y ∝ x^value fitted to logarithms; ``problem`` where it is no fit to rely on."""

    value: float
    interval: tuple[float, float] | None
    num_points: int
    problem: str = ""

    def measure(
        self,
        name: str,
        about: str,
        *,
        low: float | None = None,
        high: float | None = None,
        role: Role = "claim",
    ) -> Measure:
        """The slope as a measure; one less certain than its accepted interval is a problem."""
        problem = self.problem
        if not problem and role != "note" and self.interval and low is not None:
            allowed = (high if high is not None else math.inf) - low
            width = self.interval[1] - self.interval[0]
            if width > allowed:
                problem = (
                    f"its 95 % interval {self.interval[0]:.2f} to {self.interval[1]:.2f} is wider "
                    f"than the accepted one"
                )
        return Measure(
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a run found: flat rows, the measures, a sentence with its numbers, and the figure."""

    rows: list[Row]
    measures: list[Measure]
    sentence: str
    figure: Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a run needs from outside: where corpora are kept, and whom to tell of the share done."""

    cache_dir: Path | None = None  # the user's
    advance: Callable[[float], None] = field(default=lambda share: None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One claim of a paper as an experiment. ``run(sizes, context)`` measures."""

    name: str
    claim: str  # its id in the ledger
    sentence: str  # what the paper says
    theorem: str  # what can be proved, and is measured here
    sources: tuple[str, ...]
    problem: str  # on what it is measured
    sizes: Any
    thorough: Any
    run: Callable[[Any, Context], Evidence]


def judge(measures: Sequence[Measure]) -> tuple[VerdictName, str]:
    """The verdict that measures amount to, and the reason in words.

    A failed requirement, or a claim or direction that cannot be judged: inconclusive. Else all
    claims hold: reproduced. Else every direction holds, and there is one: direction only.
    Else: refuted.
    """
    for measure in measures:
        if measure.role == "note":
            continue
        problem = measure.problem
        if not problem and not math.isfinite(measure.value):
            problem = "its value is not finite"
        if not problem and measure.role == "requirement" and not measure.passed:
            problem = f"it is {measure.value:.3g}, required is {measure.expected}"
        if problem:
            return "inconclusive", f"{measure.name}: {problem}"
    claims = [measure for measure in measures if measure.role == "claim"]
    directions = [measure for measure in measures if measure.role == "direction"]
    if not claims:
        return "inconclusive", "nothing that the claim says was measured"
    failed = [measure for measure in claims if not measure.passed]
    if not failed:
        return "reproduced", f"all {len(claims)} measures of the claim lie where it says"
    against = "; ".join(_finding(measure) for measure in failed)
    if directions and all(measure.passed for measure in directions):
        return "direction only", f"{against}; but {_finding(directions[0])}"
    return "refuted", "; ".join([against, *(_finding(m) for m in directions if not m.passed)])


def _finding(measure: Measure) -> str:
    value = measure.value if abs(measure.value) > 1e-12 else 0.0  # rounding is no finding
    return f"{measure.name} is {value:.3g} (expected {measure.expected})"
