"""Search of a config's fields: the same budget for every arm, and an optimum inside its range.

The first half of the budget is quasi-random and can run in parallel; the rest is placed one after
another by a Gaussian process over log values. Nothing is stored: the finished trials are the only
state, whatever order they finished in, so a search that was cut goes on as if it had not been.
"""

import functools
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from muonlab.lab.experiment import Search

EDGE = 0.05  # of the log range: a best value this close to a side is at its edge
Values = tuple[tuple[str, float], ...]
Box = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trained setting. A diverged trial's loss is +∞ (or NaN): it counts, and never wins."""

    values: Mapping[str, float]
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Where a search stands: what to train next, its range so far, how often that was extended."""

    next_trials: tuple[dict[str, float], ...]
    space: Box
    extensions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a search chose, and how much worse than the best it may be (NaN: not measured)."""

    values: Mapping[str, float]
    regret: float


def next_trials(search: Search, finished: Sequence[Trial], arm: str = "") -> list[dict[str, float]]:
    """Settings to train now, in parallel if there are several; none when the search is done.

    A setting is asked for again until it is among ``finished``.
    """
    return list(plan(search, finished, arm).next_trials)


def best(search: Search, finished: Sequence[Trial]) -> Trial:
    """The trial of the lowest loss, of equals that of the lowest values.

    Raises ValueError where every trial diverged.
    """
    sound = [trial for trial in finished if math.isfinite(trial.loss)]
    if not sound:
        raise ValueError(
            f"all {len(finished)} trials of {', '.join(search.space)} diverged; search lower values"
        )
    return min(sound, key=lambda trial: (trial.loss, _key(trial.values)))


def finalists(search: Search, finished: Sequence[Trial]) -> list[dict[str, float]]:
    """The settings to train again: the best of the finite trials, best first."""
    sound = [trial for trial in finished if math.isfinite(trial.loss)]
    ranked = sorted(sound, key=lambda trial: (trial.loss, _key(trial.values)))
    return [dict(trial.values) for trial in ranked[: search.finalists]]


def choose(search: Search, finished: Sequence[Trial], repeated: Sequence[Trial]) -> Choice:
    """The finalist of the lowest mean loss, and how far the highest of the others lies above it.

    The next one alone is too near: intervals with that regret held the truth 87 times in 100
    (benchmarks/coverage.py).

    ``repeated``: every finalist with every further seed. The trials themselves do not count for the
    mean: a finalist was picked by its trial, so that was lucky. Without repeats, or with one
    finalist whose runs did not diverge, the regret is NaN. Raises ValueError as `best` does.
    """
    losses: dict[Values, list[float]] = {}
    for trial in repeated:
        losses.setdefault(_key(trial.values), []).append(trial.loss)
    means = sorted((sum(found) / len(found), values) for values, found in losses.items())
    sound = [(mean, values) for mean, values in means if math.isfinite(mean)]
    if not sound:
        return Choice(values=best(search, finished).values, regret=math.nan)
    regret = sound[-1][0] - sound[0][0] if len(sound) > 1 else math.nan
    return Choice(values=dict(sound[0][1]), regret=regret)


def at_edge(
    space: Mapping[str, tuple[float, float]], values: Mapping[str, float]
) -> dict[str, str]:
    """The fields whose value lies within 5 % (of the log range) of a side: "low" or "high"."""
    sides = {}
    for field, (low, high) in space.items():
        position = math.log(values[field] / low) / math.log(high / low)
        if position <= EDGE:
            sides[field] = "low"
        elif position >= 1 - EDGE:
            sides[field] = "high"
    return sides


def plan(search: Search, finished: Sequence[Trial], arm: str = "") -> Plan:
    """Replay the search over what has finished, up to the first settings that have not.

    The quasi-random settings are scrambled by ``arm``: common ones would favour the arm whose
    optimum happens to lie near one of them.
    """
    losses = {_key(trial.values): trial.loss for trial in finished}
    space: Box = {field: (_round(low), _round(high)) for field, (low, high) in search.space.items()}
    region: Box | None = space  # where quasi-random trials go: later, what an extension added
    scramble = search.seed + zlib.crc32(arm.encode())
    known: dict[Values, float] = {}
    extensions, rounds, budget = 0, 0, search.trials
    while True:
        wanted: list[Values] = []
        if region:
            wanted = _quasi_random(region, math.ceil(budget / 2), scramble + extensions)
        end = len(known) + budget
        while len(known) < end:
            if missing := [values for values in wanted if values not in losses]:
                settings = tuple(map(dict, missing))
                return Plan(next_trials=settings, space=space, extensions=extensions)
            known |= {values: losses[values] for values in wanted}
            if len(known) < end:
                wanted = [_refine(tuple(space.items()), tuple(known.items()), search.seed)]
        tried = [Trial(values=dict(values), loss=loss) for values, loss in known.items()]
        diverged = not any(math.isfinite(loss) for loss in known.values())
        if diverged or rounds == search.extensions:
            return Plan(next_trials=(), space=space, extensions=extensions)
        region = None
        if sides := at_edge(space, best(search, tried).values):
            space, region = _extend(space, sides)
            extensions += 1
        rounds, budget = rounds + 1, search.trials // 2


def _quasi_random(region: Box, count: int, seed: int) -> list[Values]:
    points = qmc.Halton(len(region), rng=np.random.default_rng(seed)).random(count)
    return [
        _key(
            {
                field: low * (high / low) ** position
                for (field, (low, high)), position in zip(region.items(), point, strict=True)
            }
        )
        for point in points
    ]


@functools.lru_cache(maxsize=4096)
def _refine(
    space: tuple[tuple[str, tuple[float, float]], ...],
    known: tuple[tuple[Values, float], ...],
    seed: int,
) -> Values:
    """The setting that a Gaussian process expects most of (about 0.3 s, so it is remembered).

    Of 6 trials over one learning rate, 3 of them refined, its regret was a tenth of the TPE's.
    """
    import optuna  # half a second, which a command that shows studies need not wait for

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(
            seed=seed + len(known), n_startup_trials=0, deterministic_objective=True
        )
    distributions = {
        field: optuna.distributions.FloatDistribution(low, high, log=True)
        for field, (low, high) in space
    }
    finite = [loss for _, loss in known if math.isfinite(loss)]
    # The process wants numbers. A diverged trial is as bad as the worst other: anything beyond
    # would flatten the differences that matter (measured: three times the regret near a cliff).
    worst = max(finite, default=0.0)
    study = optuna.create_study(sampler=sampler)
    for values, loss in known:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(values),
                distributions=distributions,  # pyright: ignore[reportArgumentType]
                value=loss if math.isfinite(loss) else worst,
            )
        )
    suggested = _key(study.ask(distributions).params)  # pyright: ignore[reportArgumentType]
    tried = dict(known)
    if suggested not in tried:
        return suggested
    points = _quasi_random(dict(space), 2 * len(known) + 1, seed)  # a repeat would teach nothing
    return next(values for values in points if values not in tried)


def _extend(space: Box, sides: Mapping[str, str]) -> tuple[Box, Box]:
    """The space grown by half its log range on those sides, and the part of it that is new."""
    grown, region = dict(space), dict(space)
    for field, side in sides.items():
        low, high = space[field]
        factor = math.sqrt(high / low)
        if side == "low":
            outer = _round(low / factor)
            grown[field], region[field] = (outer, high), (outer, low)
        else:
            outer = _round(high * factor)
            grown[field], region[field] = (low, outer), (high, outer)
    return grown, region


def _key(values: Mapping[str, float]) -> Values:
    return tuple((field, _round(values[field])) for field in sorted(values))


def _round(value: float) -> float:
    """Three digits: finer than any loss can tell, readable, the same on every machine."""
    return float(f"{value:.3g}")
