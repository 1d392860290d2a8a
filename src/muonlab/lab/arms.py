"""Arms of a study as its frame shows them: their values by seed, paired, compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from muonlab.lab.experiment import Comparison
from muonlab.lab.statistics import (
    Difference,
    Numbers,
    Pool,
    corrected,
    paired_difference,
    pool_variance,
    with_pool,
    with_regret,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two arms of one protocol: ``arm`` is claimed to be lower than ``baseline``."""

    arm: str
    baseline: str

    @classmethod
    def of(cls, comparison: Comparison) -> "Pair":
        return cls(arm=comparison.arm, baseline=comparison.baseline)


def values(frame: pd.DataFrame, arm: str, measure: str = "loss") -> pd.Series:
    """A measure of an arm's finished or diverged runs, by seed."""
    found = frame.loc[frame["arm"] == arm, ["seed", measure]].dropna()
    return pd.Series(found[measure].to_numpy(dtype=float), index=found["seed"])


def mean(frame: pd.DataFrame, arm: str, measure: str = "loss") -> float:
    found = values(frame, arm, measure)
    return float(found.mean()) if len(found) else math.nan


def paired_values(
    frame: pd.DataFrame, pair: Pair, measure: str = "loss"
) -> tuple[Numbers, Numbers]:
    """Of ``arm`` and of ``baseline``, a value for every seed that both have."""
    arm, baseline = (values(frame, name, measure) for name in (pair.arm, pair.baseline))
    seeds = sorted(set(arm.index) & set(baseline.index))
    return arm.loc[seeds].to_numpy(), baseline.loc[seeds].to_numpy()


def compare(
    frame: pd.DataFrame, pair: Pair, family: Sequence[Pair] = (), measure: str = "loss"
) -> Difference:
    """``arm`` minus ``baseline`` over the seeds that both have, as `contrasts` says.

    p is corrected after Holm over ``family``, all comparisons of the study, as in its table.
    """
    return compare_all(frame, [pair, *family], measure)[pair]


def compare_all(
    frame: pd.DataFrame, family: Sequence[Pair], measure: str = "loss"
) -> dict[Pair, Difference]:
    """Every pair's difference, p corrected after Holm over all of them."""
    pairs = list(dict.fromkeys(family))
    return dict(zip(pairs, corrected(contrasts(frame, pairs, measure)), strict=True))


def contrasts(
    frame: pd.DataFrame, pairs: Sequence[Pair], measure: str = "loss"
) -> list[Difference]:
    """Every pair's difference, with the regret of the searches that tuned its arms.

    Arms that are compared with each other, directly or through others, share one variance where
    theirs are alike. The p-values are not corrected yet. Only losses have a regret, because
    searches rank by them.
    """
    pools = {arm: pool for pool in pools_of(frame, pairs, measure) for arm in pool.arms}
    found = []
    for pair in pairs:
        difference = paired_difference(*paired_values(frame, pair, measure))
        difference = with_pool(difference, pools.get(pair.arm))
        if is_loss(measure):
            difference = with_regret(
                difference, regret(frame, pair.arm), regret(frame, pair.baseline)
            )
        found.append(difference)
    return found


def pools_of(frame: pd.DataFrame, pairs: Sequence[Pair], measure: str = "loss") -> list[Pool]:
    """The variances of each group of compared arms, where every arm has the same seeds."""
    groups: list[set[str]] = []
    for pair in pairs:
        met = [group for group in groups if group & {pair.arm, pair.baseline}]
        groups = [group for group in groups if group not in met]
        groups.append({pair.arm, pair.baseline}.union(*met))
    pools = []
    for group in groups:
        found = {arm: values(frame, arm, measure).sort_index() for arm in sorted(group)}
        if len({tuple(series.index) for series in found.values()}) == 1:
            pools.append(pool_variance({arm: s.to_numpy() for arm, s in found.items()}))
    return [pool for pool in pools if pool is not None]


def is_loss(measure: str) -> bool:
    """``loss``, or one of its splits."""
    return measure.rpartition("/")[2] == "loss"


def regret(frame: pd.DataFrame, arm: str) -> float:
    """What the search that tuned an arm may have lost; 0 if none did, NaN if it is not known."""
    rows = frame.loc[frame["arm"] == arm, :]
    tuned = [key for key in rows if str(key).startswith("tuned/")]
    if not rows[tuned].notna().to_numpy().any():
        return 0.0
    return float(rows["regret"].iloc[0]) if "regret" in rows else math.nan


def pairs_of(comparisons: Sequence[Comparison], measure: str = "loss") -> list[Pair]:
    """The comparisons of a study in that measure: the family that its p-values belong to."""
    return [Pair.of(comparison) for comparison in comparisons if comparison.measure == measure]


def complete_seeds(frame: pd.DataFrame) -> list[int]:
    """The seeds of which every run has finished or diverged; an error is neither."""
    cut = set(frame.loc[frame["loss"].isna(), "seed"])
    return [seed for seed in frame["seed"].unique() if seed not in cut]
