"""The rule of findings within bounds, and the fit of slopes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muonlab.lab.bounds import fit_slope, judge_findings
from muonlab.lab.experiment import Finding, Role


def judge(findings: list[Finding]) -> tuple[str, str]:
    verdict = judge_findings("P0", findings, "")
    return verdict.verdict, verdict.rule.partition("decided by: ")[2].removesuffix(".")


def finding(role: Role, *, holds: bool, name: str = "", problem: str = "") -> Finding:
    return Finding(
        name=name or role,
        value=0.0 if holds else 2.0,
        high=1.0,
        role=role,
        about="invented",
        problem=problem,
    )


def test_claims_that_hold_are_reproduced() -> None:
    verdict, reason = judge([finding("claim", holds=True), finding("direction", holds=False)])
    assert verdict == "reproduced"
    assert "1 findings" in reason


def test_a_failed_claim_is_refuted() -> None:
    verdict, reason = judge([finding("claim", holds=True), finding("claim", holds=False, name="x")])
    assert verdict == "refuted"
    assert "x is 2 (expected at most 1)" in reason


def test_a_failed_claim_whose_directions_hold_is_direction_only() -> None:
    assert judge([finding("claim", holds=False), finding("direction", holds=True)])[0] == (
        "direction only"
    )
    mixed = [finding("direction", holds=True), finding("direction", holds=False, name="other")]
    verdict, reason = judge([finding("claim", holds=False), *mixed])
    assert verdict == "refuted"
    assert "other" in reason


@pytest.mark.parametrize("claim", [True, False])
def test_a_failed_requirement_is_inconclusive(claim: bool) -> None:
    verdict, reason = judge(
        [finding("claim", holds=claim), finding("requirement", holds=False, name="convergence")]
    )
    assert verdict == "inconclusive"
    assert reason == "convergence: it is 2, required is at most 1"


def test_what_cannot_be_judged_is_inconclusive() -> None:
    assert judge([finding("claim", holds=True, problem="too few points")]) == (
        "inconclusive",
        "claim: too few points",
    )
    nan = Finding(name="loss", value=math.nan, high=1.0, about="invented")
    assert judge([nan]) == ("inconclusive", "loss: its value is not finite")
    assert judge([finding("direction", holds=True)])[0] == "inconclusive"


def test_notes_decide_nothing() -> None:
    note = Finding(name="note", value=math.nan, role="note", about="invented")
    assert judge([note, finding("claim", holds=True)])[0] == "reproduced"


def test_a_finding_without_bounds_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="finding 'x': a claim needs low or high"):
        Finding(name="x", value=1.0, about="invented")


@given(
    power=st.floats(-3, 3),
    scale=st.floats(1e-6, 1e6),
    points=st.integers(5, 12),
)
def test_a_power_law_is_found(power: float, scale: float, points: int) -> None:
    x = [2.0**k for k in range(points)]
    slope = fit_slope(x, [scale * value**power for value in x])
    assert slope.value == pytest.approx(power, abs=1e-9)
    assert slope.num_points == points
    assert not slope.problem


def test_groups_have_factors_of_their_own() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    y = [factor * value**-0.5 for factor in (1.0, 30.0) for value in x]
    alone = fit_slope(x + x, y)
    grouped = fit_slope(x + x, y, groups=[0] * 5 + [1] * 5)
    assert grouped.value == pytest.approx(-0.5)
    assert grouped.interval == pytest.approx((-0.5, -0.5))
    assert alone.interval is not None
    assert alone.interval[1] - alone.interval[0] > 0.5


def test_the_interval_is_that_of_scipy() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    y = [1.0, 0.7, 0.6, 0.3, 0.31, 0.2]
    expected: Any = stats.linregress(np.log(x), np.log(y))
    half_width = float(stats.t.ppf(0.975, 4)) * expected.stderr
    slope = fit_slope(x, y)
    assert slope.value == pytest.approx(expected.slope)
    assert slope.interval == pytest.approx(
        (expected.slope - half_width, expected.slope + half_width)
    )


def test_noise_widens_the_interval_of_a_slope() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    slope = fit_slope(x, [value**-0.5 * (1 + 0.5 * (-1) ** k) for k, value in enumerate(x)])
    assert slope.interval is not None
    assert slope.interval[0] < -0.5 < slope.interval[1]
    found = slope.finding("slope", "invented", low=-0.52, high=-0.48)
    assert "wider than the accepted one" in found.problem
    assert judge([found])[0] == "inconclusive"


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2, 4, 8], [1, 2, 4, 8], "a slope needs 5 points, 4 were measured"),
        ([1, 1, 1, 1, 2], [1, 1, 1, 1, 2], "a slope needs 5 points, 2 were measured"),
        ([1, 2, 4, 8, 16], [1, 2, 0, 8, 16], "not finite"),
        ([1, 2, 4, 8, 16], [1, 2, math.nan, 8, 16], "not finite"),
    ],
)
def test_a_fit_that_cannot_be_is_said(x: list[float], y: list[float], reason: str) -> None:
    slope = fit_slope(x, y)
    assert reason in slope.problem
    assert judge([slope.finding("slope", "invented", low=0.5, high=1.5)])[0] == "inconclusive"
