"""Costs to reach a loss, on curves whose truth is known."""

import math

import numpy as np
import pytest

from muonlab.lab.targets import (
    Budgets,
    CostRatio,
    PowerLaw,
    cost_ratio,
    fit_power_laws,
    interpolated_cost,
)

FRACTIONS = np.array([1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 4 / 3])
ADAMW = PowerLaw(floor=3.0, scale=1.2, exponent=0.5)
MUON = PowerLaw(floor=3.0, scale=1.2 * 0.5**0.5, exponent=0.5)  # half of AdamW's cost everywhere


def curve(law: PowerLaw, costs: np.ndarray) -> np.ndarray:
    return law.floor + law.scale * costs**-law.exponent


def runs(law: PowerLaw, *, noise: float, seeds: int = 5, seed: int = 0) -> Budgets:
    generator = np.random.default_rng(seed)
    shape = (seeds, len(FRACTIONS))
    losses = curve(law, FRACTIONS) + generator.normal(0, noise, shape)
    return Budgets(costs=FRACTIONS, losses=losses)


@pytest.mark.parametrize("unit", [1.0, 1e9])
def test_a_fit_finds_the_law_in_any_unit(unit: float) -> None:
    laws = fit_power_laws(
        {
            "adamw": (FRACTIONS * unit, curve(ADAMW, FRACTIONS)),
            "muon": (FRACTIONS * unit, curve(MUON, FRACTIONS)),
        }
    )
    assert laws["adamw"].floor == laws["muon"].floor == pytest.approx(3.0, abs=1e-3)
    assert laws["adamw"].exponent == pytest.approx(0.5, abs=1e-3)
    target = ADAMW.cost(4.0), laws["adamw"].cost(4.0) / unit
    assert target[0] == pytest.approx(target[1], rel=1e-4)
    assert laws["muon"].cost(4.2) / laws["adamw"].cost(4.2) == pytest.approx(0.5, rel=1e-3)


def test_no_cost_reaches_the_floor() -> None:
    assert ADAMW.cost(3.0) == math.inf
    assert ADAMW.cost(4.2) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["fit", "interpolation"])
def test_the_ratio_of_noisy_runs_is_near_the_truth(method: str) -> None:
    found = cost_ratio(
        runs(MUON, noise=0.01),
        runs(ADAMW, noise=0.01, seed=1),
        reference=1.0,
        method=method,  # pyright: ignore[reportArgumentType]
    )
    assert found.ratio == pytest.approx(0.5, abs=0.03)
    assert found.low <= found.ratio <= found.high
    assert found.high - found.low < 0.1
    assert found.num_misses == 0
    assert found.target == pytest.approx(4.2, abs=0.02)


@pytest.mark.parametrize(("seeds", "rounds"), [(5, 300), (2, 300)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int, rounds: int) -> None:
    hits = 0
    for seed in range(rounds):
        found = cost_ratio(
            runs(MUON, noise=0.02, seeds=seeds, seed=2 * seed),
            runs(ADAMW, noise=0.02, seeds=seeds, seed=2 * seed + 1),
            reference=1.0,
            method="interpolation",
        )
        hits += found.low <= 0.5 <= found.high
    assert 0.91 < hits / rounds <= 0.99


@pytest.mark.slow
def test_the_fits_interval_covers_the_truth_too() -> None:
    hits = 0
    for seed in range(60):
        found = cost_ratio(
            runs(MUON, noise=0.01, seed=2 * seed),
            runs(ADAMW, noise=0.01, seed=2 * seed + 1),
            reference=1.0,
        )
        hits += found.low <= 0.5 <= found.high
    assert hits >= 53


@pytest.mark.parametrize("method", ["fit", "interpolation"])
def test_a_miss_is_infinite_and_counted(method: str) -> None:
    worse = PowerLaw(floor=3.5, scale=1.2, exponent=0.5)
    found = cost_ratio(
        runs(worse, noise=0.001),
        runs(ADAMW, noise=0.001),
        reference=1.0,
        method=method,  # pyright: ignore[reportArgumentType]
    )
    assert found.ratio == found.low == found.high == math.inf
    assert found.num_misses == 5
    assert not found.at_most


def test_misses_without_some_seeds_leave_no_interval() -> None:
    arm = runs(ADAMW, noise=0.0)
    arm.losses[0] += 2.0  # one seed of five never gets there
    found = cost_ratio(arm, runs(ADAMW, noise=0.0), reference=1.0, method="interpolation")
    assert found.ratio == math.inf
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.num_misses == 4


def test_a_target_within_the_smallest_budget_is_an_upper_bound() -> None:
    fast = PowerLaw(floor=3.0, scale=1.2 * 0.1**0.5, exponent=0.5)
    for method in ("fit", "interpolation"):
        found = cost_ratio(
            runs(fast, noise=0.001),
            runs(ADAMW, noise=0.001),
            reference=1.0,
            method=method,  # pyright: ignore[reportArgumentType]
        )
        assert found.at_most
        assert found.ratio == pytest.approx(0.25, abs=0.001)
        assert found.low == 0.0


def test_diverged_runs_are_misses_or_leave_nothing_to_say() -> None:
    whole, arm = runs(ADAMW, noise=0.0), runs(MUON, noise=0.0)
    arm.losses[:, 2:] = math.inf
    assert cost_ratio(arm, whole, reference=1.0, method="interpolation").ratio == math.inf
    assert math.isnan(cost_ratio(arm, whole, reference=1.0).ratio), "no fit over diverged runs"
    arm = runs(MUON, noise=0.0)
    arm.losses[0, 5] = math.inf  # beyond the crossing: nothing changes
    found = cost_ratio(arm, whole, reference=1.0, method="interpolation")
    assert found.ratio == pytest.approx(0.5, rel=1e-2)
    whole.losses[0, 4] = math.inf  # the baseline never got to a target
    for method in ("fit", "interpolation"):
        found = cost_ratio(runs(MUON, noise=0.0), whole, reference=1.0, method=method)  # pyright: ignore[reportArgumentType]
        assert math.isnan(found.ratio)
        assert math.isnan(found.low)


def test_interpolation_is_monotone_and_exact_at_the_budgets() -> None:
    costs, losses = np.array([1.0, 2.0, 4.0]), np.array([5.0, 4.0, 4.5])
    assert interpolated_cost(costs, losses, 4.0) == 2.0
    assert interpolated_cost(costs, losses, 4.5) == pytest.approx(math.sqrt(2))
    assert interpolated_cost(costs, losses, 6.0) == 1.0, "at most the smallest budget"
    assert interpolated_cost(costs, losses, 3.9) == math.inf
    late = np.array([math.inf, 4.0, 3.0])
    assert interpolated_cost(costs, late, 4.2) == 2.0


def test_regret_moves_the_ends_of_the_interval() -> None:
    muon, adamw = runs(MUON, noise=0.005), runs(ADAMW, noise=0.005, seed=1)

    def ratio(first: float, second: float) -> CostRatio:
        pair = (
            Budgets(costs=FRACTIONS, losses=found.losses, regret=lost)
            for found, lost in ((muon, first), (adamw, second))
        )
        return cost_ratio(*pair, reference=1.0, method="interpolation")

    plain, lost = ratio(0.0, 0.0), ratio(0.05, 0.05)
    assert lost.ratio == plain.ratio
    assert lost.low < plain.low - 0.01
    assert lost.high > plain.high + 0.01
    assert ratio(0.0, 5.0).high == math.inf, "a target that Muon never reached"
    assert not ratio(math.nan, 0.05).regret_known


def test_one_seed_has_no_interval() -> None:
    found = cost_ratio(runs(MUON, noise=0, seeds=1), runs(ADAMW, noise=0, seeds=1), reference=1.0)
    assert found.ratio == pytest.approx(0.5, rel=1e-2)
    assert math.isnan(found.low)


def test_bad_input_is_one_line() -> None:
    good = runs(MUON, noise=0)
    with pytest.raises(ValueError, match=r"reference is 0\.9; legal: \[0\.25"):
        cost_ratio(good, good, reference=0.9)
    with pytest.raises(ValueError, match="2 seeds cannot be paired with 5"):
        cost_ratio(runs(MUON, noise=0, seeds=2), good, reference=1.0)
    with pytest.raises(ValueError, match="positive and rising"):
        Budgets(costs=np.array([2.0, 1.0]), losses=np.ones((1, 2)))
    with pytest.raises(ValueError, match="positive and rising"):
        Budgets(costs=np.array([1.0, math.nan]), losses=np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"losses are \(2,\)"):
        Budgets(costs=np.array([1.0, 2.0]), losses=np.ones(2))
    with pytest.raises(
        ValueError, match="arm has 2 finite losses of 2; a power law needs all, and 3"
    ):
        fit_power_laws({"arm": (FRACTIONS[:2], np.array([2.0, 1.0]))})
