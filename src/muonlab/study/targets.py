"""What it costs to reach a loss: from separately annealed runs at several budgets.

A budget is tokens, FLOPs or seconds, whatever the caller measures; each of its losses is the end of
a run whose schedule was annealed within it. Two estimators: a power law with a floor that all arms
share, and interpolation of the best loss so far. A target that no budget reaches costs ∞: a miss
is kept, and nothing is extrapolated beyond the largest budget.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

Numbers = NDArray[np.float64]
Method = Literal["fit", "interpolation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """One arm: ``losses[seed, budget]`` at rising ``costs``; seeds in the same order in all arms.

    A diverged run is +∞.
    """

    costs: Numbers
    losses: Numbers

    def __post_init__(self) -> None:
        if self.losses.ndim != 2 or self.losses.shape[1] != len(self.costs):
            raise ValueError(
                f"losses are {self.losses.shape}; they must be (seeds, {len(self.costs)} budgets)"
            )
        if (self.costs <= 0).any() or (np.diff(self.costs) <= 0).any():
            raise ValueError(f"costs are {self.costs.tolist()}; they must be positive and rising")

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
    """Cost of an arm over the baseline's at one loss, with its bootstrap interval over seeds.

    ∞ is a miss. ``num_misses`` of ``num_resamples`` resamples missed.
    """

    target: float
    ratio: float
    low: float
    high: float
    num_misses: int
    num_resamples: int


def fit_power_laws(curves: Mapping[str, tuple[Numbers, Numbers]]) -> dict[str, PowerLaw]:
    """Fit every arm's (costs, losses) with one floor for all, by least squares on the losses.

    Losses that are not finite are left out of the fit. Raises ValueError for less than three
    others in an arm.
    """
    kept = {}
    for name, (costs, losses) in curves.items():
        finite = np.isfinite(losses)
        if finite.sum() < 3:
            raise ValueError(f"{name} has {finite.sum()} finite losses; a power law needs 3")
        kept[name] = costs[finite], losses[finite]
    unit = math.exp(np.mean([np.log(costs).mean() for costs, _ in kept.values()]))
    lowest = min(losses.min() for _, losses in kept.values())

    def residuals(point: Numbers) -> Numbers:
        # floor = lowest · sigmoid; scale and exponent are positive: all by their logarithms
        floor = lowest / (1 + math.exp(-point[0]))
        return np.concatenate(
            [
                floor + np.exp(log_scale - np.exp(log_exponent) * np.log(costs / unit)) - losses
                for (costs, losses), log_scale, log_exponent in zip(
                    kept.values(), point[1::2], point[2::2], strict=True
                )
            ]
        )

    solutions = []
    for share in (0.5, 0.8, 0.95):  # where the floor starts, of the lowest loss
        start = [math.log(share / (1 - share))]
        for costs, losses in kept.values():
            slope, height = np.polyfit(np.log(costs / unit), np.log(losses - share * lowest), 1)
            start += [height, math.log(max(-slope, 0.05))]
        bounds = (-12.0, *[-20.0, -6.0] * len(kept)), (12.0, *[20.0, 3.0] * len(kept))
        solutions.append(least_squares(residuals, np.clip(start, *bounds), bounds=bounds))
    found = min(solutions, key=lambda solution: solution.cost).x
    floor = lowest / (1 + math.exp(-found[0]))
    laws = {}
    for name, log_scale, log_exponent in zip(kept, found[1::2], found[2::2], strict=True):
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
    seed: int = 0,
    num_resamples: int = 999,
    confidence: float = 0.95,
) -> CostRatio:
    """Cost of ``arm`` over that of ``baseline`` at the baseline's loss at the cost ``reference``.

    Seeds are resampled in pairs, and the target with them. Raises ValueError for a reference that
    is none of the baseline's costs, or unequal numbers of seeds. One seed has no interval (NaN).
    """
    at = np.flatnonzero(np.isclose(baseline.costs, reference))
    if not len(at):
        raise ValueError(f"reference is {reference:g}; legal: {baseline.costs.tolist()}")
    num_seeds = len(baseline.losses)
    if len(arm.losses) != num_seeds:
        raise ValueError(f"{len(arm.losses)} seeds cannot be paired with {num_seeds}")
    known: dict[tuple[int, ...], float] = {}  # few seeds have few distinct resamples

    def ratio(seeds: tuple[int, ...]) -> float:
        if seeds not in known:
            target = float(baseline.mean(seeds)[at[0]])
            known[seeds] = _ratio(arm, baseline, seeds, target, method)
        return known[seeds]

    everyone = tuple(range(num_seeds))
    target = float(baseline.mean(everyone)[at[0]])
    if num_seeds < 2:
        value = ratio(everyone)
        return CostRatio(
            target=target,
            ratio=value,
            low=math.nan,
            high=math.nan,
            num_misses=int(math.isinf(value)),
            num_resamples=0,
        )
    draws = np.random.default_rng(seed).integers(num_seeds, size=(num_resamples, num_seeds))
    ratios = np.array([ratio(tuple(sorted(draw))) for draw in draws.tolist()])
    tail = (1 - confidence) / 2
    # Of the values themselves, not between them: a miss must not make its neighbours infinite.
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    return CostRatio(
        target=target,
        ratio=ratio(everyone),
        low=float(low),
        high=float(high),
        num_misses=int(np.isinf(ratios).sum()),
        num_resamples=num_resamples,
    )


def _ratio(
    arm: Budgets, baseline: Budgets, seeds: tuple[int, ...], target: float, method: Method
) -> float:
    """∞ where the arm misses the target, or the baseline diverged and there is none."""
    if not math.isfinite(target):
        return math.inf
    losses, reference = arm.mean(seeds), baseline.mean(seeds)
    if method == "interpolation":
        return interpolated_cost(arm.costs, losses, target) / interpolated_cost(
            baseline.costs, reference, target
        )
    if np.isfinite(losses).sum() < 3:
        return math.inf
    laws = fit_power_laws({"arm": (arm.costs, losses), "baseline": (baseline.costs, reference)})
    cost = laws["arm"].cost(target)
    if cost > arm.costs[-1]:
        return math.inf
    return cost / laws["baseline"].cost(target)
