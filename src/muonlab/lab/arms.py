"""Arms of a study as its frame shows them: their values by seed, paired, compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from muonlab.lab.experiment import Comparison
from muonlab.lab.statistics import Difference, Numbers, corrected, paired_difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two arms of one protocol: ``arm`` is claimed to be lower than ``baseline``."""

    arm: str
    baseline: str


def values(frame: pd.DataFrame, arm: str, measure: str = "val/loss") -> pd.Series:
    """A measure of an arm's finished or diverged runs, by seed."""
    found = frame.loc[frame["arm"] == arm, ["seed", measure]].dropna()
    return pd.Series(found[measure].to_numpy(dtype=float), index=found["seed"])


def mean(frame: pd.DataFrame, arm: str, measure: str = "val/loss") -> float:
    found = values(frame, arm, measure)
    return float(found.mean()) if len(found) else math.nan


def paired_values(
    frame: pd.DataFrame, pair: Pair, measure: str = "val/loss"
) -> tuple[Numbers, Numbers]:
    """Of ``arm`` and of ``baseline``, a value for every seed that both have."""
    arm, baseline = (values(frame, name, measure) for name in (pair.arm, pair.baseline))
    seeds = sorted(set(arm.index) & set(baseline.index))
    return arm.loc[seeds].to_numpy(), baseline.loc[seeds].to_numpy()


def compare(
    frame: pd.DataFrame, pair: Pair, family: Sequence[Pair] = (), measure: str = "val/loss"
) -> Difference:
    """``arm`` minus ``baseline`` over the seeds that both have.

    p is corrected after Holm over ``family``, all comparisons of the study, as in its table.
    """
    pairs = [pair, *(other for other in family if other != pair)]
    return corrected([paired_difference(*paired_values(frame, each, measure)) for each in pairs])[0]


def pairs_of(comparisons: Sequence[Comparison], measure: str = "val/loss") -> list[Pair]:
    """The comparisons of a study in that measure: the family that its p-values belong to."""
    return [
        Pair(arm=comparison.arm, baseline=comparison.baseline)
        for comparison in comparisons
        if comparison.measure == measure
    ]


def complete_seeds(frame: pd.DataFrame) -> list[int]:
    """The seeds of which every run has finished or diverged; an error is neither."""
    cut = set(frame.loc[frame["val/loss"].isna(), "seed"])
    return [seed for seed in frame["seed"].unique() if seed not in cut]
