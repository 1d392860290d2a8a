"""From finished runs to a verdict: the same rules for every claim of a difference.

A claim "A beats B by r" is judged twice, under the protocol as published and under the honest one,
from paired seeds. The rules stand in `judge_difference` alone.
"""

import math
from dataclasses import dataclass

import pandas as pd

from muonlab.study.experiment import Scale, Verdict
from muonlab.study.statistics import Difference, paired_difference
from muonlab.verdicts import VerdictName


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two arms of one protocol: ``arm`` is claimed to be lower than ``baseline``."""

    arm: str
    baseline: str


def values(frame: pd.DataFrame, arm: str, measure: str = "val/loss") -> pd.Series:
    """A measure of an arm's finished or diverged runs, by seed."""
    chosen = (frame["arm"] == arm) & (frame["status"] != "missing")
    return pd.Series(
        frame.loc[chosen, measure].to_numpy(dtype=float), index=frame.loc[chosen, "seed"]
    )


def mean(frame: pd.DataFrame, arm: str, measure: str = "val/loss") -> float:
    found = values(frame, arm, measure)
    return float(found.mean()) if len(found) else math.nan


def compare(frame: pd.DataFrame, pair: Pair, measure: str = "val/loss") -> Difference:
    """``arm`` minus ``baseline`` over the seeds that both have."""
    arm, baseline = (values(frame, name, measure) for name in (pair.arm, pair.baseline))
    seeds = sorted(set(arm.index) & set(baseline.index))
    return paired_difference(arm.loc[seeds].to_numpy(), baseline.loc[seeds].to_numpy())


def relative(frame: pd.DataFrame, pair: Pair, measure: str = "val/loss") -> float:
    """The mean of ``arm`` relative to that of ``baseline``, less 1."""
    return mean(frame, pair.arm, measure) / mean(frame, pair.baseline, measure) - 1


def complete_seeds(frame: pd.DataFrame) -> list[int]:
    """The seeds that have all their runs."""
    cut = set(frame.loc[frame["status"] == "missing", "seed"])
    return [seed for seed in frame["seed"].unique() if seed not in cut]


def judge_interval(
    low: float, high: float, *, nothing: float, claimed: tuple[float, float]
) -> VerdictName:
    """Of a 95 % interval that the paper claims to lie in ``claimed``, below ``nothing``.

    Below it: reproduced where the two intervals meet, else direction only. Refuted where it lies
    above; inconclusive where it holds ``nothing``, or is none.
    """
    if high < nothing:
        return "reproduced" if low <= claimed[1] and high >= claimed[0] else "direction only"
    return "refuted" if low > nothing else "inconclusive"


def judge_difference(
    claim: str,
    frame: pd.DataFrame,
    scale: Scale,
    *,
    what: str,
    published: Pair,
    honest: Pair,
    paper: float,
    measure: str = "val/loss",
) -> Verdict:
    """Whether ``arm`` is lower by about the relative amount ``paper`` (negative: lower).

    Inconclusive with less than two pairs under either protocol, or where the published protocol's
    95 % interval holds 0. Refuted where the published protocol shows the opposite. An artefact of
    the protocol where the published one shows the effect and the honest one's interval holds 0 or
    lies on the other side. Otherwise reproduced if the published protocol's effect is within a
    factor of two of the paper's, and direction only if not.
    """
    found = {name: compare(frame, pair, measure) for name, pair in (_pairs(published, honest))}
    text = "; ".join(
        _sentence(name, pair, found[name], frame, measure)
        for name, pair in _pairs(published, honest)
    )
    size = relative(frame, published, measure)
    verdict = _verdict(found["as published"], found["honest"], size, paper)
    return Verdict(
        claim=claim,
        verdict=verdict,
        sentence=f"{what[0].upper()}{what[1:]}, at {scale} scale: {text}.",
        paper=f"{paper:+.1%}",
        ours=f"as published {size:+.1%}, honest {relative(frame, honest, measure):+.1%}",
    )


def _pairs(published: Pair, honest: Pair) -> tuple[tuple[str, Pair], tuple[str, Pair]]:
    return ("as published", published), ("honest", honest)


def _verdict(published: Difference, honest: Difference, size: float, paper: float) -> VerdictName:
    if min(published.num_pairs, honest.num_pairs) < 2:
        return "inconclusive"
    side = math.copysign(1, paper)
    if excludes_zero(published) != side:
        return "inconclusive" if excludes_zero(published) == 0 else "refuted"
    if excludes_zero(honest) != side:
        return "artefact of the protocol"
    return "reproduced" if 0.5 <= size / paper <= 2 else "direction only"


def excludes_zero(difference: Difference) -> int:
    """−1 or 1 where the interval (or a divergence) lies on that side of 0, else 0."""
    if math.isinf(difference.mean):
        return 1 if difference.mean > 0 else -1
    if difference.high < 0:
        return -1
    return 1 if difference.low > 0 else 0


def _sentence(name: str, pair: Pair, found: Difference, frame: pd.DataFrame, measure: str) -> str:
    if found.num_pairs == 0:
        return f"{name}: no pair of finished runs yet"
    text = (
        f"{name}, {mean(frame, pair.arm, measure):.4f} against "
        f"{mean(frame, pair.baseline, measure):.4f}, difference {found.mean:+.4f}"
    )
    if math.isnan(found.low):
        return f"{text} (n = {found.num_pairs}, no interval)"
    return f"{text} [{found.low:+.4f}, {found.high:+.4f}] (n = {found.num_pairs} pairs)"
