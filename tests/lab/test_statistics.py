"""Statistics against published worked examples and against simulation with known truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muonlab.lab.statistics import (
    bootstrap_interval,
    equivalence_p,
    excludes_zero,
    factorial_effects,
    holm,
    mean_difference,
    paired_difference,
    pool_variance,
    trend,
    wilson,
    with_pool,
    with_regret,
)

INF = math.inf
# Student 1908, "The probable error of a mean": hours of sleep gained by two drugs, ten patients.
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def within_noise(hits: int, simulations: int, probability: float) -> bool:
    """Within four standard errors of the truth."""
    error = math.sqrt(probability * (1 - probability) / simulations)
    return abs(hits / simulations - probability) < 4 * error


def test_paired_difference_is_students_own_example() -> None:
    found = paired_difference(LAEVO, DEXTRO)
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)  # t = 4.0621, 9 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.num_pairs == 10


def test_the_t_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 1.0, size=(4000, 5))
    found = [mean_difference(values) for values in draws]
    assert within_noise(sum(d.low <= 0.3 <= d.high for d in found), 4000, 0.95)
    assert all((d.p < 0.05) == (d.low > 0 or d.high < 0) for d in found)


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([3.0], [2.5])
    assert (found.mean, found.num_pairs) == (0.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert paired_difference([], []).num_pairs == 0


def test_a_diverged_run_is_worse_and_never_dropped() -> None:
    found = paired_difference([INF, 3.0, 3.1], [2.0, 3.0, 3.0])
    assert found.mean == INF
    assert math.isnan(found.low)
    assert (found.num_pairs, found.num_diverged) == (3, 1)
    assert paired_difference([2.0, 3.0], [INF, 3.0]).mean == -INF
    always = paired_difference([INF] * 6, [3.0, 3.1, 3.2, 3.3, 3.4, 3.5])
    assert always.p == pytest.approx(2 / 2**6), "all six pairs on one side"
    both = paired_difference([INF, 3.0, 3.5], [INF, 3.0, 3.0])
    assert (both.mean, both.num_diverged) == (pytest.approx(1 / 6), 0)
    assert math.isnan(paired_difference([INF, 1.0], [1.0, INF]).mean)


def test_a_missing_run_takes_its_pair_along_and_is_counted() -> None:
    found = paired_difference([math.nan, 3.0, 3.2], [2.0, 2.0, 2.0])
    assert (found.mean, found.num_pairs, found.num_missing) == (pytest.approx(1.1), 2, 1)


def test_a_figure_without_scatter_needs_no_test() -> None:
    found = paired_difference([7.0, 7.0], [5.0, 5.0])
    assert (found.mean, found.low, found.high, found.p) == (2, 2, 2, 0)
    assert paired_difference([7.0, 7.0], [7.0, 7.0]).p == 1


def test_unequal_numbers_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_bootstrap_covers_the_truth_of_skewed_values() -> None:
    draws = np.random.default_rng(1).gamma(2.0, 1.0, size=(2000, 30))
    intervals = [bootstrap_interval(values, num_resamples=499) for values in draws]
    coverage = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    assert 0.92 < coverage < 0.96  # BCa's own error at n = 30 is 1-2 %


def test_the_bootstrap_is_seeded_and_knows_when_there_is_none() -> None:
    assert bootstrap_interval(DEXTRO) == bootstrap_interval(DEXTRO)
    assert bootstrap_interval(DEXTRO) != bootstrap_interval(DEXTRO, seed=1)
    assert math.isnan(bootstrap_interval([1.0]).low)
    assert math.isnan(bootstrap_interval([1.0, INF]).low)
    constant = bootstrap_interval([2.0, 2.0, 2.0])
    assert (constant.low, constant.high) == (2.0, 2.0)
    two = bootstrap_interval([1.0, 2.0])
    assert 1 <= two.low <= two.high <= 2


def test_holm_is_the_published_example() -> None:
    # Wright 1992, Biometrics 48: 1005-1013, and R's p.adjust
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    with_gap = holm([0.01, math.nan, 0.03])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.03])
    assert math.isnan(with_gap[1])
    assert holm([]).size == 0


def test_holm_keeps_the_family_wise_error() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(size=(3000, 6, 5))
    p = stats.ttest_1samp(values, 0.0, axis=2).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    wrong = sum(bool((holm(row) < 0.05).any()) for row in p)
    assert within_noise(wrong, 3000, 1 - (1 - 0.05 / 6) ** 6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    assert (corrected >= np.array(p)).all()
    assert (corrected <= np.minimum(1, len(p) * np.array(p))).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def test_equivalence_has_its_size_at_the_margin_and_power_inside() -> None:
    generator = np.random.default_rng(3)
    at_margin = generator.normal(0.01, 0.005, size=(1000, 8))
    wrong = sum(equivalence_p(mean_difference(values)) < 0.05 for values in at_margin)
    assert within_noise(wrong, 1000, 0.05)
    inside = generator.normal(0.0, 0.004, size=(500, 8))
    assert np.mean([equivalence_p(mean_difference(values)) < 0.05 for values in inside]) > 0.95


def test_equivalence_of_odd_inputs() -> None:
    assert math.isnan(equivalence_p(mean_difference([0.0])))
    assert equivalence_p(mean_difference([0.0, INF])) == 1
    assert equivalence_p(mean_difference([0.0, 0.0])) == 0
    assert equivalence_p(mean_difference([0.02, 0.02])) == 1
    with pytest.raises(ValueError, match="margin is 0"):
        equivalence_p(mean_difference([0.0, 1.0]), margin=0)


def test_equivalence_is_the_interval_inside_the_margin() -> None:
    # Two one-sided tests at 5 % are the 90 % interval inside ±margin.
    for values in np.random.default_rng(4).normal(0.002, 0.006, size=(50, 5)):
        interval = mean_difference(values, confidence=0.9)
        inside = interval.low > -0.01 and interval.high < 0.01
        assert (equivalence_p(mean_difference(values)) < 0.05) == inside


def test_regret_widens_the_interval_on_the_side_that_was_tuned_too_little() -> None:
    surely = mean_difference([-0.10, -0.11, -0.09])
    assert excludes_zero(surely) == -1
    lost = with_regret(surely, 0.02, 0.09)
    assert lost.low == pytest.approx(surely.low - 0.02), "the first may be better still"
    assert lost.high == pytest.approx(surely.high + 0.09), "and so may the second"
    assert excludes_zero(lost) == 0
    assert lost.p > 0.05 > surely.p
    assert with_regret(surely, math.nan, 0.0).low == surely.low, "not measured: nothing is added"
    assert math.isnan(with_regret(surely, math.nan, 0.0).regret[0])


@pytest.mark.parametrize("regrets", [(0.0, 0.05), (0.05, 0.0), (0.03, 0.01)])
def test_interval_and_p_say_the_same_of_regret(regrets: tuple[float, float]) -> None:
    for values in np.random.default_rng(8).normal(0.03, 0.03, size=(200, 4)):
        found = with_regret(mean_difference(values), *regrets)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_arms_that_scatter_alike_share_one_variance() -> None:
    generator = np.random.default_rng(9)
    arms = {f"arm {index}": generator.normal(4, 0.01, 3) for index in range(6)}
    pool = pool_variance(arms)
    assert pool is not None
    assert pool.alike
    assert pool.freedom == 5 * 2
    one = paired_difference(arms["arm 0"], arms["arm 1"])
    shared = with_pool(one, pool)
    assert shared.pooled
    assert shared.freedom == 10
    assert shared.error >= one.error
    noisy = arms | {"noisy": generator.normal(4, 1.0, 3)}
    unlike = pool_variance(noisy)
    assert unlike is not None
    assert not unlike.alike
    assert with_pool(one, unlike) == one
    assert pool_variance(dict(list(arms.items())[:2])) is None, "a pair pools nothing"
    assert pool_variance(arms | {"lost": np.array([4.0, 4.1, INF])}) is None


@pytest.mark.parametrize("noisy", [1.0, 3.0])
def test_pooled_intervals_cover_the_truth(noisy: float) -> None:
    """One of six arms scatters more; with three seeds that is often not seen."""
    generator = np.random.default_rng(10)
    covered, rounds, widths, own_widths = 0, 600, [], []
    for _ in range(rounds):
        table = generator.normal(0, 1, (6, 3)) * np.array([noisy, 1, 1, 1, 1, 1])[:, None]
        own = paired_difference(table[0], table[1])
        found = with_pool(own, pool_variance({str(i): row for i, row in enumerate(table)}))
        covered += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
        own_widths.append(own.high - own.low)
    assert covered / rounds > 0.9
    if noisy == 1:
        assert np.median(widths) < 0.8 * np.median(own_widths)


def test_regret_is_no_equivalence() -> None:
    same = mean_difference([0.001, -0.001, 0.0005])
    assert equivalence_p(same) < 0.05
    assert equivalence_p(with_regret(same, 0.02, 0.0)) > 0.05


def test_regret_widens_effects_of_a_factorial() -> None:
    costs = {(0,): [1.0, 1.01, 0.99], (1,): [0.5, 0.51, 0.49]}
    plain = factorial_effects(costs, ("A",))["A"]
    lost = factorial_effects(costs, ("A",), {(0,): 0.1, (1,): 0.02})["A"]
    assert (lost.low, lost.high) == pytest.approx((plain.low - 0.02, plain.high + 0.1))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_is_newcombes_table(successes: int, trials: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17: 857-872, table I, method 3
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_no_runs_is_no_interval() -> None:
    assert math.isnan(wilson(0, 0).low)


def test_a_trend_is_found_with_its_slope() -> None:
    x = np.repeat(np.log([8, 16, 32, 64, 128]), 3)
    found = trend(x, 1.1 + 0.2 * x + np.random.default_rng(5).normal(0, 0.05, 15))
    assert found.p < 1e-3
    assert found.low < 0.2 < found.high
    assert found.tau > 0.7


def test_a_trend_counts_misses_as_largest() -> None:
    found = trend([1, 2, 3, 4, 5], [1.0, 2.0, 3.0, INF, INF])
    assert found.tau > 0.9
    assert math.isnan(found.slope)
    assert math.isnan(trend([1, 2], [1, 2]).p)


def test_no_trend_is_called_one_as_often_as_p_says() -> None:
    generator = np.random.default_rng(6)
    x = np.repeat(np.arange(5.0), 3)
    found = [trend(x, generator.normal(size=15)) for _ in range(2000)]
    assert sum(t.low <= 0 <= t.high for t in found) / 2000 == pytest.approx(0.95, abs=0.02)
    assert sum(t.p < 0.05 for t in found) / 2000 < 0.07


def test_effects_are_the_textbooks_pilot_plant() -> None:
    # Box, Hunter & Hunter, "Statistics for Experimenters", the 2^3 pilot plant: yields in standard
    # order; its effects are T 23, C -5, K 1.5, TC 1.5, TK 10, CK 0, TCK 0.5.
    yields = [60, 72, 54, 68, 52, 83, 45, 80]
    cells = [(t, c, k) for k in (0, 1) for c in (0, 1) for t in (0, 1)]
    costs = {cell: [math.exp(value)] * 2 for cell, value in zip(cells, yields, strict=True)}
    effects = factorial_effects(costs, ("T", "C", "K"))
    assert {name: round(effect.mean, 6) for name, effect in effects.items()} == {
        "T": 23, "C": -5, "K": 1.5, "T × C": 1.5, "T × K": 10, "C × K": 0, "T × C × K": 0.5,
    }  # fmt: skip


def test_gains_that_multiply_have_no_interaction() -> None:
    generator = np.random.default_rng(7)
    costs = {
        (a, b): list(np.exp(generator.normal(0, 0.01, 5)) * 0.5**a * 0.8**b)
        for a in (0, 1)
        for b in (0, 1)
    }
    effects = factorial_effects(costs, ("Muon", "MLA"))
    assert math.exp(effects["Muon"].mean) == pytest.approx(0.5, rel=0.05)
    assert effects["Muon × MLA"].low < 0 < effects["Muon × MLA"].high


def test_a_factorial_needs_every_cell_and_keeps_divergence() -> None:
    with pytest.raises(ValueError, match=r"costs lacks \(1, 1\) of a 2\^2 factorial"):
        factorial_effects({(0, 0): [1], (0, 1): [1], (1, 0): [1]}, ("A", "B"))
    costs = {(0,): [1.0, 1.0], (1,): [2.0, INF]}
    assert factorial_effects(costs, ("A",))["A"].mean == INF
    everywhere = {(0, 0): [1.0], (0, 1): [INF], (1, 0): [INF], (1, 1): [1.0]}
    assert factorial_effects(everywhere, ("A", "B"))["A"].num_missing == 1
