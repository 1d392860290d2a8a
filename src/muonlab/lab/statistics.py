"""What runs say of each other: paired differences, equivalence, corrections, trends, contrasts.

Two rules hold everywhere. A diverged run is a loss of +∞: it counts as worse than any finite one
and is never dropped. A missing value is NaN: its pair is left out, and counted.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Numbers = NDArray[np.float64]
EQUIVALENCE_MARGIN = 0.01  # nats/token: less is "no effect" here
# Bartlett's p from which variances are pooled. Three seeds tell variances badly: from 0.1 on, the
# interval of an arm that scatters three times as much as five others held the truth 86 times in
# 100; with this, and an error never below the pairs' own, 92 times.
ALIKE = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A confidence interval; NaN on both sides where there is none."""

    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A mean of paired differences with its t interval and two-sided p.

    One pair has no interval and no p (NaN). A diverged run makes the mean infinite: there is no
    interval then, and p is Wilcoxon's, because ranks need no finite values. ``num_diverged`` and
    ``num_missing`` count pairs; the missing are not among the ``num_pairs``. ``error`` and
    ``freedom``: the standard error of the mean and its degrees of freedom.

    ``pooled``: the error is of the variance that several arms share.
    ``regret``: what the settings of the first and of the second may have lost in their searches;
    interval and p contain it. NaN: it was not measured, and nothing is added.
    """

    mean: float
    low: float
    high: float
    p: float
    num_pairs: int
    num_diverged: int = 0
    num_missing: int = 0
    corrected_p: float = math.nan  # over all comparisons of its study; NaN: it stands alone
    error: float = math.nan
    freedom: float = math.nan
    pooled: bool = False
    regret: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """Kendall's τ with its p (an infinite y is only the largest), and the least-squares slope.

    The slope and its interval are NaN where y is not finite or there are less than three points.
    """

    tau: float
    p: float
    slope: float
    low: float
    high: float


def pair_differences(first: ArrayLike, second: ArrayLike) -> Numbers:
    """``first - second`` by position; two diverged runs are equal, a missing one gives NaN."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} values cannot be paired with {b.size}")
    both_diverged = np.isposinf(a) & np.isposinf(b)
    with np.errstate(invalid="ignore"):
        return np.where(both_diverged, 0.0, a - b)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95
) -> Difference:
    """Mean of ``first - second`` over pairs, with t interval and p of a paired t test."""
    return mean_difference(pair_differences(first, second), confidence=confidence)


def mean_difference(differences: ArrayLike, *, confidence: float = 0.95) -> Difference:
    """The same from the differences themselves."""
    everything = np.asarray(differences, dtype=float)
    values = everything[~np.isnan(everything)]
    counts: dict[str, Any] = {
        "num_pairs": len(values),
        "num_diverged": int(np.isinf(values).sum()),
        "num_missing": len(everything) - len(values),
    }
    none = {"low": math.nan, "high": math.nan, "p": math.nan}
    if counts["num_diverged"]:
        # Both signs at once have no mean; ranks still say which side is worse more often.
        signs = set(values[np.isinf(values)])
        mean = signs.pop() if len(signs) == 1 else math.nan
        p = _p(stats.wilcoxon(values)) if len(values) > 1 else math.nan
        return Difference(mean=mean, **(none | {"p": p}), **counts)
    if len(values) < 2:
        return Difference(mean=float(values[0]) if len(values) else math.nan, **none, **counts)
    mean, freedom = float(values.mean()), len(values) - 1
    # Figures that do not depend on the seed have no scatter.
    error = 0.0 if _is_constant(values) else float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=_two_sided(abs(mean), error, freedom),
        error=error,
        freedom=freedom,
        **counts,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The variance that seeds leave in several arms, after each arm's and each seed's mean.

    ``p``: Bartlett's, that the arms' variances are alike; ``alike``: it is `ALIKE` or more.
    """

    arms: tuple[str, ...]
    variance: float
    freedom: float
    p: float

    @property
    def alike(self) -> bool:
        return self.p >= ALIKE


def pool_variance(values: Mapping[str, Numbers]) -> Pool | None:
    """The common variance of arms with the same three or more seeds; None where there is none.

    None for less than three arms (two have no more to say than their pairs), for a loss that is
    not finite, and for an arm without scatter. Source: Bartlett 1937.
    """
    table = np.array(list(values.values()), dtype=float)  # (arms, seeds)
    if len(table) < 3 or table.shape[1] < 3 or not np.isfinite(table).all():
        return None
    if any(_is_constant(row) for row in table):
        return None
    seeds, arms = table.mean(axis=0), table.mean(axis=1, keepdims=True)
    residuals = table - arms - seeds + table.mean()
    freedom = (len(table) - 1) * (table.shape[1] - 1)
    return Pool(
        arms=tuple(values),
        variance=float((residuals**2).sum()) / freedom,
        freedom=freedom,
        p=_p(stats.bartlett(*table)),
    )


def with_pool(difference: Difference, pool: Pool | None, share: float = 2.0) -> Difference:
    """The same with the variance of ``pool``, if its arms are alike; regret is added after this.

    ``share`` of that variance over the number of pairs is the difference's own: 2 for two arms.
    The error is never taken smaller than the pairs' own.
    """
    if pool is None or not pool.alike or math.isnan(difference.error):
        return difference
    error = max(difference.error, math.sqrt(share * pool.variance / difference.num_pairs))
    half = float(stats.t.ppf(0.975, pool.freedom)) * error
    return dataclasses.replace(
        difference,
        low=difference.mean - half,
        high=difference.mean + half,
        p=_two_sided(abs(difference.mean), error, pool.freedom),
        error=error,
        freedom=pool.freedom,
        pooled=True,
    )


def with_regret(difference: Difference, first: float, second: float) -> Difference:
    """The same for the best settings of both: each side's search may have missed its optimum.

    ``first`` and ``second`` are what the settings of either may be worse than the best of their
    search. The best of the first may be lower by ``first``, so the interval goes down by it; up by
    ``second``. p is of the distance from 0 that is left. NaN: not measured, nothing is added.
    """
    down, up = (0.0 if math.isnan(regret) else regret for regret in (first, second))
    p = difference.p
    if (down or up) and not math.isnan(difference.error):
        left = abs(difference.mean) - (up if difference.mean < 0 else down)
        p = _two_sided(max(left, 0.0), difference.error, difference.freedom)
    return dataclasses.replace(
        difference,
        low=difference.low - down,
        high=difference.high + up,
        p=p,
        regret=(first, second),
    )


def scaled(difference: Difference, factor: float) -> Difference:
    """The same difference in another unit, ``factor`` (positive) times as large."""
    first, second = difference.regret
    return dataclasses.replace(
        difference,
        mean=factor * difference.mean,
        low=factor * difference.low,
        high=factor * difference.high,
        error=factor * difference.error,
        regret=(factor * first, factor * second),
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same, each with its p corrected after Holm over all of them."""
    p_values = holm([difference.p for difference in differences])
    return [
        dataclasses.replace(difference, corrected_p=float(p))
        for difference, p in zip(differences, p_values, strict=True)
    ]


def excludes_zero(difference: Difference) -> int:
    """−1 or 1 where the interval lies on that side of 0, and the corrected p is below .05; else 0.

    With divergences there is no interval: where all pairs diverged on one side, or by Wilcoxon's p.
    """
    alone = math.isnan(difference.corrected_p)
    p = difference.p if alone else difference.corrected_p
    if math.isinf(difference.mean):
        surely = difference.num_diverged == difference.num_pairs > 1 or p < 0.05
        return (1 if difference.mean > 0 else -1) if surely else 0
    if not alone and p >= 0.05:
        return 0
    if difference.high < 0:
        return -1
    return 1 if difference.low > 0 else 0


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, seed: int = 0, num_resamples: int = 9999
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean. Source: Efron 1987.

    None for less than two values or a value that is not finite. With n < 10 it is too narrow, as
    every bootstrap is: read it beside the t interval, not for it.
    """
    sample = np.asarray(values, dtype=float)
    sample = sample[~np.isnan(sample)]
    if len(sample) < 2 or not np.isfinite(sample).all():
        return Interval()
    if _is_constant(sample):
        return Interval(low=float(sample[0]), high=float(sample[0]))
    result = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(low=float(low), high=float(high))


def holm(p_values: ArrayLike) -> Numbers:
    """p-values corrected over a table, step-down. Source: Holm 1979.

    NaN (no test was made) stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected


def equivalence_p(difference: Difference, *, margin: float = EQUIVALENCE_MARGIN) -> float:
    """p of two one-sided t tests: below .05, the mean difference lies within ±``margin``.

    Regret counts against it. NaN for one pair. A diverged run on one side only is no equivalence:
    1. Source: Schuirmann 1987.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be positive")
    if difference.num_diverged:
        return 1.0
    if math.isnan(difference.error):
        return math.nan
    down, up = (0.0 if math.isnan(regret) else regret for regret in difference.regret)
    room = min(difference.mean - down + margin, margin - difference.mean - up)
    return _tail(room, difference.error, difference.freedom)


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion, such as the share of runs that diverged. Source: Wilson 1927."""
    if trials == 0:
        return Interval()
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(low=float(interval.low), high=float(interval.high))


def trend(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> Trend:
    """Whether ``y`` rises or falls with ``x``; pass log x where the claim is of factors."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    kept = ~np.isnan(xs) & ~np.isnan(ys)
    xs, ys = xs[kept], ys[kept]
    none = {"slope": math.nan, "low": math.nan, "high": math.nan}
    if len(xs) < 3 or _is_constant(xs):
        return Trend(tau=math.nan, p=math.nan, **none)
    rank = stats.kendalltau(xs, ys)
    tau, p = float(rank.statistic), _p(rank)  # pyright: ignore[reportAttributeAccessIssue]
    if not np.isfinite(ys).all():
        return Trend(tau=tau, p=p, **none)
    line = stats.linregress(xs, ys)
    half = stats.t.ppf((1 + confidence) / 2, len(xs) - 2) * line.stderr  # pyright: ignore[reportAttributeAccessIssue]
    slope = float(line.slope)  # pyright: ignore[reportAttributeAccessIssue]
    return Trend(tau=tau, p=p, slope=slope, low=slope - half, high=slope + half)


def factorial_effects(
    costs: Mapping[tuple[int, ...], Sequence[float]],
    factors: Sequence[str],
    regrets: Mapping[tuple[int, ...], float] | None = None,
) -> dict[str, Difference]:
    """Every main effect and interaction of a 2^k factorial on log costs, by "A", "A × B", ….

    ``costs[(0, 1, …)]`` holds one cost a seed, in the same order everywhere. An effect is the mean
    log cost where the product of its factors' signs is +, less where it is −. Gains multiply where
    the interactions are 0; exp(effect) is a factor. ``regrets``: what the search of a cell
    may have lost, in log cost; none for None. The cells share one variance where it is alike.
    Source: Box, Hunter & Hunter, ch. 5.
    """
    cells = list(itertools.product((0, 1), repeat=len(factors)))
    if missing := [cell for cell in cells if cell not in costs]:
        raise ValueError(f"costs lacks {missing[0]} of a 2^{len(factors)} factorial")
    logs = np.log(np.array([costs[cell] for cell in cells], dtype=float))  # (cells, seeds)
    lost = np.array([regrets[cell] if regrets else 0.0 for cell in cells])
    signs = 2 * np.array(cells) - 1  # (cells, factors)
    effects = {}
    pool = pool_variance({str(cell): row for cell, row in zip(cells, logs, strict=True)})
    for order in range(1, len(factors) + 1):
        for chosen in itertools.combinations(range(len(factors)), order):
            sign = signs[:, chosen].prod(axis=1)
            high, low = logs[sign > 0].mean(axis=0), logs[sign < 0].mean(axis=0)
            name = " × ".join(factors[index] for index in chosen)
            with np.errstate(invalid="ignore"):  # divergence on both sides says nothing: NaN
                effect = mean_difference(high - low)
            effect = with_pool(effect, pool, share=4 / len(cells))
            first, second = (float(lost[side].mean()) for side in (sign > 0, sign < 0))
            effects[name] = with_regret(effect, first, second)
    return effects


def _tail(distance: float, error: float, freedom: float) -> float:
    """The chance that a t-distributed error exceeds ``distance``; without any error, 0 or 1."""
    if error == 0:
        return float(distance <= 0)
    return float(stats.t.sf(distance / error, freedom))


def _two_sided(distance: float, error: float, freedom: float) -> float:
    return min(2 * _tail(distance, error, freedom), 1.0)


def _p(test: Any) -> float:
    return float(test.pvalue)  # scipy's results have no types


def _is_constant(values: Numbers) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0))
