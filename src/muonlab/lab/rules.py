"""From finished runs to a verdict: the same rules for every claim of a difference.

A claim "A beats B by r" is judged twice, under the protocol as published and under the honest one,
from paired seeds. The rules stand in `judge_difference` alone.
"""

import math
from collections.abc import Sequence

import pandas as pd

from muonlab.lab.arms import Pair, compare, paired_values
from muonlab.lab.experiment import Scale, Verdict, VerdictName
from muonlab.lab.statistics import Difference, Numbers, excludes_zero


def judge_interval(
    low: float, high: float, *, nothing: float, claimed: tuple[float, float]
) -> VerdictName:
    """Of a 95 % interval that the paper claims to lie in ``claimed``, below ``nothing``.

    Below it: reproduced where the two intervals meet and ours leaves out effects of less than half
    the claimed one, else direction only. Refuted where it lies above; inconclusive where it holds
    ``nothing``, or is none.
    """
    if high < nothing:
        meets = low <= claimed[1] and high >= claimed[0]
        precise = nothing - high >= (nothing - sum(claimed) / 2) / 2
        return "reproduced" if meets and precise else "direction only"
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
    family: Sequence[Pair],
    measure: str = "loss",
) -> Verdict:
    """Whether ``arm`` is lower by about the relative amount ``paper`` (negative: lower).

    Inconclusive with less than two pairs under either protocol, or where the published protocol's
    difference is not surely told from 0: its 95 % interval holds 0, or its p, corrected after Holm
    over ``family``, is .05 or more. Refuted where the published protocol surely shows the opposite.
    Where the published one shows the effect and the honest one does not, an artefact of the
    protocol if the honest interval leaves out half of the paper's effect too, else inconclusive.
    Otherwise reproduced if the published protocol's whole interval lies within a factor of two of
    the paper's effect, and direction only if not.
    """
    both = [
        _Compared(*paired_values(frame, pair, measure), compare(frame, pair, family, measure))
        for pair in (published, honest)
    ]
    text = "; ".join(
        f"{name}{found.sentence()}"
        for name, found in zip(("as published", "honest"), both, strict=True)
    )
    verdict = _verdict(both[0], both[1], paper)
    return Verdict(
        claim=claim,
        verdict=verdict,
        sentence=f"{what[0].upper()}{what[1:]}, at {scale} scale: {text}.",
        paper=f"{paper:+.1%}",
        ours=f"as published {both[0].size:+.1%}, honest {both[1].size:+.1%}",
        rule="A difference counts if its 95 % interval leaves out 0 and its p, corrected after "
        f"Holm over the {len(family)} comparisons of the study, is below .05. Reproduced: it "
        "counts under both protocols and its whole interval lies within a factor of two of "
        "the paper's.",
    )


def regret_text(difference: Difference) -> str:
    """What a sentence says of the searches behind a difference; empty where nothing was tuned."""
    if not any(difference.regret):
        return ""
    if any(map(math.isnan, difference.regret)):
        return "regret of the searches not measured"
    first, second = difference.regret
    return f"the searches' regret of {first:.4f} and {second:.4f} included"


class _Compared:
    """Two arms over the seeds that both have: their means, their difference, its relative size."""

    def __init__(self, arm: Numbers, baseline: Numbers, difference: Difference) -> None:
        self.difference = difference
        both = len(arm) > 0
        self.arm = float(arm.mean()) if both else math.nan
        self.baseline = float(baseline.mean()) if both else math.nan
        self.size = self.arm / self.baseline - 1

    def sentence(self) -> str:
        found = self.difference
        if found.num_pairs == 0:
            return ": no pair of finished runs yet"
        text = f", {self.arm:.4f} against {self.baseline:.4f}, difference {found.mean:+.4f}"
        if math.isnan(found.low):
            return f"{text} (n = {found.num_pairs}, no interval)"
        sure = f", p = {found.corrected_p:.2g} after Holm" if found.corrected_p < 1 else ""
        lost = "".join(f", {said}" for said in (regret_text(found),) if said)
        return (
            f"{text} [{found.low:+.4f}, {found.high:+.4f}] "
            f"(n = {found.num_pairs} pairs{sure}{lost})"
        )


def _verdict(published: _Compared, honest: _Compared, paper: float) -> VerdictName:
    if min(published.difference.num_pairs, honest.difference.num_pairs) < 2:
        return "inconclusive"
    side = math.copysign(1, paper)
    shown = excludes_zero(published.difference)
    if shown != side:
        return "inconclusive" if shown == 0 else "refuted"
    held = excludes_zero(honest.difference)
    if held == side:
        sizes = [
            end / (published.baseline * paper)
            for end in (published.difference.low, published.difference.high)
        ]
        return "reproduced" if min(sizes) >= 0.5 and max(sizes) <= 2 else "direction only"
    strongest = honest.difference.low if side < 0 else honest.difference.high
    if held == -side or side * strongest < abs(paper) / 2 * honest.baseline:
        return "artefact of the protocol"
    return "inconclusive"
