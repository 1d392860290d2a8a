"""What it costs to reach a loss: from separately annealed runs at several budgets.

A budget is tokens, FLOPs or seconds, whatever the caller measures; each of its losses is the end of
a run whose schedule was annealed within it. Two estimators: a power law with a floor that all arms
share, and interpolation of the best loss so far. A target that no budget reaches costs ∞: a miss
is kept, and nothing is extrapolated beyond the largest budget.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import least_squares

Numbers = NDArray[np.float64]
Method = Literal["fit", "interpolation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """One arm: ``losses[seed, budget]`` at rising ``costs``; seeds in the same order in all arms.

    A diverged run is +∞. ``regret``: what the search that tuned the arm may have lost (NaN: not
    measured).
    """

    costs: Numbers
    losses: Numbers
    regret: float = 0.0

    def __post_init__(self) -> None:
        if self.losses.ndim != 2 or self.losses.shape[1] != len(self.costs):
            raise ValueError(
                f"losses are {self.losses.shape}; they must be (seeds, {len(self.costs)} budgets)"
            )
        if not ((self.costs > 0).all() and (np.diff(self.costs) > 0).all()):
            raise ValueError(f"costs are {self.costs.tolist()}; they must be positive and rising")

    def at_best(self) -> "Budgets":
        """The losses that the best setting of the search might have had."""
        lost = 0.0 if math.isnan(self.regret) else self.regret
        return Budgets(costs=self.costs, losses=self.losses - lost)

    def mean(self, seeds: ArrayLike) -> Numbers:
        """Mean loss over those seeds, at every budget."""
        return self.losses[np.asarray(seeds)].mean(axis=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """L(T) = floor + scale · T^−exponent."""

    floor: float
    scale: float
    exponent: float

    def cost(self, target: float) -> float:
        """T where L(T) is the target; ∞ at or below the floor."""
        if not target > self.floor:
            return math.inf
        return float((self.scale / (target - self.floor)) ** (1 / self.exponent))


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRatio:
    """Cost of an arm over the baseline's at one loss, with its t interval over seeds.

    ∞ is a miss. NaN: the baseline diverged, or a fit would rest on diverged runs; as an interval,
    one seed or misses without some. ``at_most``: the arm's smallest budget reaches the target, with
    all seeds or without one, so the ratio is no more than it says and ``low`` is 0.
    ``num_misses``: how many of the ``num_seeds`` leave a miss when they are left out. The interval
    holds the regret of both searches; ``regret_known`` is False where it was not measured.
    """

    target: float
    ratio: float
    low: float
    high: float
    at_most: bool
    num_misses: int
    num_seeds: int
    regret_known: bool = True


def fit_power_laws(curves: Mapping[str, tuple[Numbers, Numbers]]) -> dict[str, PowerLaw]:
    """Fit every arm's (costs, losses) with one floor for all, by least squares on the losses.

    Raises ValueError for less than three losses in an arm, or one that is not finite.
    """
    for name, (_, losses) in curves.items():
        if (finite := int(np.isfinite(losses).sum())) < max(len(losses), 3):
            raise ValueError(
                f"{name} has {finite} finite losses of {len(losses)}; a power law needs all, and 3"
            )
    unit = math.exp(np.mean([np.log(costs).mean() for costs, _ in curves.values()]))
    lowest = min(losses.min() for _, losses in curves.values())

    def residuals(point: Numbers) -> Numbers:
        # floor = lowest · sigmoid; scale and exponent are positive: all by their logarithms
        floor = lowest / (1 + math.exp(-point[0]))
        return np.concatenate(
            [
                floor + np.exp(log_scale - np.exp(log_exponent) * np.log(costs / unit)) - losses
                for (costs, losses), log_scale, log_exponent in zip(
                    curves.values(), point[1::2], point[2::2], strict=True
                )
            ]
        )

    solutions = []
    for share in (0.5, 0.8, 0.95):  # where the floor starts, of the lowest loss
        start = [math.log(share / (1 - share))]
        for costs, losses in curves.values():
            slope, height = np.polyfit(np.log(costs / unit), np.log(losses - share * lowest), 1)
            start += [height, math.log(max(-slope, 0.05))]
        bounds = (-12.0, *[-20.0, -6.0] * len(curves)), (12.0, *[20.0, 3.0] * len(curves))
        solutions.append(least_squares(residuals, np.clip(start, *bounds), bounds=bounds))
    found = min(solutions, key=lambda solution: solution.cost).x
    floor = lowest / (1 + math.exp(-found[0]))
    laws = {}
    for name, log_scale, log_exponent in zip(curves, found[1::2], found[2::2], strict=True):
        exponent = math.exp(log_exponent)
        scale = math.exp(log_scale) * unit**exponent
        laws[name] = PowerLaw(floor=float(floor), scale=scale, exponent=exponent)
    return laws


def interpolated_cost(costs: Numbers, losses: Numbers, target: float) -> float:
    """Cost at which the best loss so far reaches the target, linear in log cost; ∞ if never.

    A target that the smallest budget reaches costs at most that budget, which is returned.
    """
    best = np.minimum.accumulate(losses)
    reached = np.flatnonzero(best <= target)
    if not len(reached):
        return math.inf
    last = reached[0]
    if last == 0 or not math.isfinite(best[last - 1]):
        return float(costs[last])
    share = (best[last - 1] - target) / (best[last - 1] - best[last])
    return float(costs[last - 1] * (costs[last] / costs[last - 1]) ** share)


def cost_ratio(
    arm: Budgets,
    baseline: Budgets,
    *,
    reference: float,
    method: Method = "fit",
    confidence: float = 0.95,
) -> CostRatio:
    """Cost of ``arm`` over that of ``baseline`` at the baseline's loss at the cost ``reference``.

    The interval is the jackknife's: t of the log ratios that are left when each seed, in both arms
    and in the target, is left out. Source: Miller 1974. Its low end is that of the arm's best
    setting, its high end that of the baseline's, as far as the regret of their searches goes.
    Raises ValueError for a reference that is none of the baseline's costs, or unequal numbers of
    seeds.
    """
    known = not (math.isnan(arm.regret) or math.isnan(baseline.regret))
    found = _cost_ratio(arm, baseline, reference, method, confidence)
    low, high = found.low, found.high
    if arm.regret > 0 and not math.isnan(low):
        other = _cost_ratio(arm.at_best(), baseline, reference, method, confidence)
        low = 0.0 if math.isnan(other.low) else min(low, other.low)
    if baseline.regret > 0 and not math.isnan(high):
        other = _cost_ratio(arm, baseline.at_best(), reference, method, confidence)
        high = math.inf if math.isnan(other.high) else max(high, other.high)
    return dataclasses.replace(found, low=low, high=high, regret_known=known)


def _cost_ratio(
    arm: Budgets, baseline: Budgets, reference: float, method: Method, confidence: float
) -> CostRatio:
    at = np.flatnonzero(np.isclose(baseline.costs, reference))
    if not len(at):
        raise ValueError(f"reference is {reference:g}; legal: {baseline.costs.tolist()}")
    num_seeds = len(baseline.losses)
    if len(arm.losses) != num_seeds:
        raise ValueError(f"{len(arm.losses)} seeds cannot be paired with {num_seeds}")
    everyone = list(range(num_seeds))
    target = float(baseline.mean(everyone)[at[0]])
    whole = _ratio(arm, baseline, everyone, int(at[0]), method)
    found = [whole]
    if num_seeds > 1:
        found = [
            _ratio(
                arm, baseline, [other for other in everyone if other != seed], int(at[0]), method
            )
            for seed in everyone
        ]
    ratios = np.array([ratio for ratio, _ in found])
    at_most = any(bound for _, bound in [whole, *found])
    low, high = _jackknife(whole[0], ratios, confidence)
    return CostRatio(
        target=target,
        ratio=whole[0],
        low=0.0 if at_most and not math.isnan(low) else low,
        high=high,
        at_most=at_most,
        num_misses=int(np.isinf(ratios).sum()),
        num_seeds=num_seeds,
    )


def _jackknife(whole: float, without_one: Numbers, confidence: float) -> tuple[float, float]:
    count = len(without_one)
    if math.isinf(whole) and np.isinf(without_one).all() and count > 1:
        return math.inf, math.inf
    if count < 2 or not np.isfinite([whole, *without_one]).all():
        return math.nan, math.nan
    logs = np.log(without_one)
    error = math.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return whole * math.exp(-half), whole * math.exp(half)


def _ratio(
    arm: Budgets, baseline: Budgets, seeds: list[int], at: int, method: Method
) -> tuple[float, bool]:
    """The ratio of costs, and whether it is only known to be at most that."""
    losses, reference = arm.mean(seeds), baseline.mean(seeds)
    target = float(reference[at])
    if not math.isfinite(target):
        return math.nan, False
    if method == "interpolation":
        cost = interpolated_cost(arm.costs, losses, target)
        whole = interpolated_cost(baseline.costs, reference, target)
    else:
        if not np.isfinite([*losses, *reference]).all():
            return math.nan, False
        laws = fit_power_laws({"arm": (arm.costs, losses), "baseline": (baseline.costs, reference)})
        cost, whole = laws["arm"].cost(target), laws["baseline"].cost(target)
    if cost > arm.costs[-1]:
        return math.inf, False
    return max(cost, arm.costs[0]) / whole, bool(cost <= arm.costs[0])


def percent_of(ratio: CostRatio) -> str:
    """The ratio and its 95 % interval in percent."""

    def percent(value: float) -> str:
        return "more than was tried" if math.isinf(value) else f"{value:.0%}"

    if math.isnan(ratio.ratio):
        return "an unknown share (runs diverged)"
    if math.isnan(ratio.low):
        misses = f"; {ratio.num_misses} of {ratio.num_seeds} jackknife samples miss"
        return f"{percent(ratio.ratio)} [no interval{misses if ratio.num_misses else ''}]"
    if ratio.at_most:
        return f"at most {percent(ratio.ratio)} [0%, {percent(ratio.high)}]"
    return f"{percent(ratio.ratio)} [{percent(ratio.low)}, {percent(ratio.high)}]"
