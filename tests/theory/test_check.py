"""The rule that makes verdicts, the fit of slopes, and what is written."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from muonlab.theory.check import Check, Context, Evidence, Measure, Role, fit_slope, judge
from muonlab.theory.record import load_outcomes, report, run_check


def measure(role: Role, *, holds: bool, name: str = "", problem: str = "") -> Measure:
    return Measure(
        name=name or role,
        value=0.0 if holds else 2.0,
        high=1.0,
        role=role,
        about="invented",
        problem=problem,
    )


def test_claims_that_hold_are_reproduced() -> None:
    verdict, reason = judge([measure("claim", holds=True), measure("direction", holds=False)])
    assert verdict == "reproduced"
    assert "1 measures" in reason


def test_a_failed_claim_is_refuted() -> None:
    verdict, reason = judge([measure("claim", holds=True), measure("claim", holds=False, name="x")])
    assert verdict == "refuted"
    assert "x is 2 (expected at most 1)" in reason


def test_a_failed_claim_whose_directions_hold_is_direction_only() -> None:
    assert judge([measure("claim", holds=False), measure("direction", holds=True)])[0] == (
        "direction only"
    )
    mixed = [measure("direction", holds=True), measure("direction", holds=False, name="other")]
    verdict, reason = judge([measure("claim", holds=False), *mixed])
    assert verdict == "refuted"
    assert "other" in reason


@pytest.mark.parametrize("claim", [True, False])
def test_a_failed_requirement_is_inconclusive(claim: bool) -> None:
    verdict, reason = judge(
        [measure("claim", holds=claim), measure("requirement", holds=False, name="convergence")]
    )
    assert verdict == "inconclusive"
    assert reason == "convergence: it is 2, required is at most 1"


def test_what_cannot_be_judged_is_inconclusive() -> None:
    assert judge([measure("claim", holds=True, problem="too few points")]) == (
        "inconclusive",
        "claim: too few points",
    )
    nan = Measure(name="loss", value=math.nan, high=1.0, about="invented")
    assert judge([nan]) == ("inconclusive", "loss: its value is not finite")
    assert judge([measure("direction", holds=True)])[0] == "inconclusive"


def test_notes_decide_nothing() -> None:
    note = Measure(name="note", value=math.nan, role="note", about="invented")
    assert judge([note, measure("claim", holds=True)])[0] == "reproduced"


def test_a_measure_without_bounds_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="measure 'x': a claim needs low or high"):
        Measure(name="x", value=1.0, about="invented")


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
    found = slope.measure("slope", "invented", low=-0.52, high=-0.48)
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
    assert judge([slope.measure("slope", "invented", low=0.5, high=1.5)])[0] == "inconclusive"


@dataclass(frozen=True)
class Sizes:
    count: int = 1


def invented(name: str, *, holds: bool) -> Check:
    def run(sizes: Sizes, context: Context) -> Evidence:
        context.advance(1.0)
        note = Measure(name="unbounded", value=math.inf, role="note", about="invented")
        return Evidence(
            rows=[{"part": "a", "x": 1 / 3}, {"part": "b", "y": 2}],
            measures=[measure("claim", holds=holds), note],
            sentence="So it is.",
            figure=Figure(),
        )

    return Check(
        name=name,
        claim="P0-invented",
        sentence="It is so.",
        theorem="None.",
        sources=("nowhere",),
        problem="Nothing.",
        sizes=Sizes(),
        thorough=Sizes(count=2),
        run=run,
    )


def test_an_outcome_is_kept_whole(tmp_path: Path) -> None:
    shares: list[float] = []
    run_check(invented("good", holds=True), tmp_path, Context(advance=shares.append))
    run_check(invented("bad", holds=False), tmp_path, Context(), thorough=True)
    assert shares == [1.0]
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == [
        "figure.png",
        "outcome.json",
        "rows.csv",
    ]
    with (tmp_path / "good" / "rows.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"part": "a", "x": "0.3333333333", "y": ""},
            {"part": "b", "x": "", "y": "2"},
        ]
    bad, good = load_outcomes(tmp_path)
    assert (good["verdict"], bad["verdict"]) == ("reproduced", "refuted")
    assert bad["command"] == "muonlab theory run bad --thorough"
    assert (good["sizes"], bad["sizes"]) == ({"count": 1}, {"count": 2})
    assert good["measures"][1]["value"] is None
    page = report([good, bad])
    assert "| P0-invented | [good](#good) | **reproduced** |" in page
    assert "![bad](bad/figure.png)" in page


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rate" / "outcome.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ValueError, match=r"rate/outcome\.json is damaged"):
        load_outcomes(tmp_path)
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="is no outcome of format 1"):
        load_outcomes(tmp_path)
