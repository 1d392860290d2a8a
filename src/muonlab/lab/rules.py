"""The rules that turn numbers into verdicts, as values: a report prints `words` beside the verdict.

``can_be`` holds every verdict that a rule can come to; a test walks each claim through all of them.
A claim "A beats B by r" is judged twice, under the protocol as published and under the honest one,
from paired seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from muonlab.lab.arms import Pair, compare, paired_values
from muonlab.lab.experiment import Scale, Verdict, VerdictName
from muonlab.lab.statistics import Difference, Numbers, excludes_zero

COUNTS = (
    "A difference counts if its 95 % interval leaves out 0 and its p, corrected after Holm over "
    "all comparisons of the study, is below .05."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedRule:
    """A rule that one claim alone has: its words, and what it can come to."""

    words: str
    can_be: tuple[VerdictName, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedRule:
    """Of a claim without an outcome: there is nothing to confirm, only to measure."""

    words: str = (
        "The paper states no outcome. What was measured is described, and nothing is judged."
    )
    can_be: ClassVar[tuple[VerdictName, ...]] = ("measured, nothing claimed", "inconclusive")

    def decide(self, *, whole: bool) -> VerdictName:
        """``whole``: no run is missing."""
        return "measured, nothing claimed" if whole else "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class CountRule:
    """Of a number without scatter: ``claimed`` or more is reproduced, none refuted.

    ``nothing`` is the number of no effect.
    """

    what: str
    claimed: float
    nothing: float
    can_be: ClassVar[tuple[VerdictName, ...]] = ("reproduced", "direction only", "refuted")

    @property
    def words(self) -> str:
        return (
            f"Reproduced where {self.what} is {self.claimed:g} or more, refuted where it is "
            f"nowhere above {self.nothing:g}, direction only between the two. It is counted or "
            "timed, not sampled, so there is no p."
        )

    def decide(self, value: float, largest: float | None = None) -> VerdictName:
        """``largest``: over all places where it was measured; by default the value itself."""
        if value >= self.claimed:
            return "reproduced"
        return "direction only" if max(value, largest or value) > self.nothing else "refuted"


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalRule:
    """Of a 95 % interval that the paper claims to lie in ``claimed``, below ``nothing``."""

    what: str
    claimed: tuple[float, float]
    nothing: float
    can_be: ClassVar[tuple[VerdictName, ...]] = (
        "reproduced",
        "direction only",
        "refuted",
        "inconclusive",
    )

    @property
    def words(self) -> str:
        low, high = self.claimed
        return (
            f"Judged by the 95 % interval of {self.what}. Reproduced where it lies below "
            f"{self.nothing:g}, meets {low:g} to {high:g} and leaves out effects of less than half "
            f"the claimed one; direction only where it only lies below {self.nothing:g}; refuted "
            "where it lies above; inconclusive where it holds it, where there is none, or where p "
            "after Holm is .05 or more."
        )

    def decide(self, low: float, high: float, p: float = 0.0) -> VerdictName:
        """``p``: corrected, where several comparisons are made."""
        if p >= 0.05:
            return "inconclusive"
        if high < self.nothing:
            meets = low <= self.claimed[1] and high >= self.claimed[0]
            effect = self.nothing - sum(self.claimed) / 2
            precise = self.nothing - high >= effect / 2
            return "reproduced" if meets and precise else "direction only"
        return "refuted" if low > self.nothing else "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRule:
    """Whether an arm is lower (``paper`` negative) or higher by about that relative amount."""

    paper: float
    can_be: ClassVar[tuple[VerdictName, ...]] = (
        "reproduced",
        "direction only",
        "refuted",
        "artefact of the protocol",
        "inconclusive",
    )

    @property
    def words(self) -> str:
        return (
            f"{COUNTS} Reproduced: it counts under both protocols, and the published "
            f"one's whole interval lies within a factor of two of the paper's {self.paper:+.1%}; "
            "direction only where it does not. Refuted: the opposite counts as published. "
            "Artefact: it counts as published, and the honest interval leaves out half of the "
            "paper's effect."
        )

    def decide(self, published: "Compared", honest: "Compared") -> VerdictName:
        if min(published.difference.num_pairs, honest.difference.num_pairs) < 2:
            return "inconclusive"
        side = math.copysign(1, self.paper)
        shown = excludes_zero(published.difference)
        if shown != side:
            return "inconclusive" if shown == 0 else "refuted"
        held = excludes_zero(honest.difference)
        if held == side:
            sizes = [
                end / (published.baseline * self.paper)
                for end in (published.difference.low, published.difference.high)
            ]
            return "reproduced" if min(sizes) >= 0.5 and max(sizes) <= 2 else "direction only"
        strongest = honest.difference.low if side < 0 else honest.difference.high
        if held == -side or side * strongest < abs(self.paper) / 2 * honest.baseline:
            return "artefact of the protocol"
        return "inconclusive"


Rule = StatedRule | DescribedRule | CountRule | IntervalRule | DifferenceRule


def judge_difference(
    claim: str,
    frame: pd.DataFrame,
    scale: Scale,
    *,
    what: str,
    published: Pair,
    honest: Pair,
    rule: DifferenceRule,
    family: Sequence[Pair],
    measure: str = "loss",
) -> Verdict:
    """The verdict of ``rule`` on a claim; p is corrected over ``family``.

    A pair of seeds counts where both arms have a loss. Less than two pairs are inconclusive.
    """
    both = [
        Compared(*paired_values(frame, pair, measure), compare(frame, pair, family, measure))
        for pair in (published, honest)
    ]
    text = "; ".join(
        f"{name}{found.sentence()}"
        for name, found in zip(("as published", "honest"), both, strict=True)
    )
    return Verdict(
        claim=claim,
        verdict=rule.decide(*both),
        sentence=f"{what[0].upper()}{what[1:]}, at {scale} scale: {text}.",
        paper=f"{rule.paper:+.1%}",
        ours=f"as published {both[0].size:+.1%}, honest {both[1].size:+.1%}",
        rule=rule.words,
    )


def regret_text(difference: Difference) -> str:
    """What a sentence says of the searches behind a difference; empty where nothing was tuned."""
    if not any(difference.regret):
        return ""
    if any(map(math.isnan, difference.regret)):
        return "regret of the searches not measured"
    first, second = difference.regret
    return f"the searches' regret of {first:.4f} and {second:.4f} included"


class Compared:
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
            f"{text} [{found.low:+.4f}, {found.high:+.4f}] nats "
            f"(n = {found.num_pairs} pairs{sure}{lost})"
        )
