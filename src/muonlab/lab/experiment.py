"""What an experiment is: a question, the arms whose runs answer it, and how they are compared.

An experiment is a value. It is made by a committed function of the scale alone, so a published
number has no hyper-parameter flags behind it. Nothing here trains.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from muonlab.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second

Scale = str  # how large an experiment is; a study of one's own may name any
SCALES: tuple[Scale, ...] = ("nano", "small", "paper")  # of built-in experiments, rising
Label = str | float
VerdictName = Literal[
    "reproduced",
    "direction only",
    "refuted",
    "artefact of the protocol",
    "measured, nothing claimed",
    "not testable at this scale",
    "inconclusive",
]
VERDICTS = "verdicts.json"  # the file that holds an experiment's
Protocol = Literal["as_published", "honest"]
# requirement: without it nothing can be said; claim: what the paper says, in its own strength;
# direction: the weaker statement that may hold where the claim does not; note: reported only.
Role = Literal["requirement", "claim", "direction", "note"]
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A learning-rate-like search: ``space`` maps a config field to its (low, high), log-uniform.

    ``trials`` is the first budget; ``extensions`` more rounds of half as many follow. In such a
    round an optimum at an edge extends that side by half the (log) range, and any other is refined:
    every arm has `total_trials`, wherever its optimum lies. Trials train the arm's own config
    with ``seed``, which no test run uses, and are ranked by the final value of ``measure``, lowest
    first.

    The best ``finalists`` are then trained again with ``repeats`` further seeds. The lowest mean of
    these is chosen, and how far the others lie above it, at most, is the search's regret: what the
    choice may have lost. Without repeats the best trial is chosen and its regret is not measured.
    """

    space: Mapping[str, tuple[float, float]]
    trials: int = 6
    extensions: int = 2
    seed: int = 1000
    measure: str = "val/loss"
    finalists: int = 3
    repeats: int = 2

    @property
    def total_trials(self) -> int:
        return self.trials + self.extensions * (self.trials // 2)

    @property
    def total_runs(self) -> int:
        """Of the trials, and of the finalists again."""
        return self.total_trials + self.finalists * self.repeats

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of the trials, then those of the repeats."""
        return tuple(range(self.seed, self.seed + self.repeats + 1))

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("search.space is empty; it must name at least one config field")
        for path, (low, high) in self.space.items():
            if not 0 < low < high:
                raise ValueError(
                    f"search.space {path} is ({low}, {high}); it must be 0 < low < high"
                )
        if self.trials < 3:
            raise ValueError(f"search.trials is {self.trials}; it must be at least 3")
        if self.finalists < 2:
            raise ValueError(f"search.finalists is {self.finalists}; it must be at least 2")
        if self.repeats < 0:
            raise ValueError(f"search.repeats is {self.repeats}; it must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One condition: a whole run but for its seed.

    ``labels`` are the columns that a table shows for it. ``search``: tuned before its test runs.
    ``tuned_as``: takes the values that another arm's search found, and has none of its own.
    """

    name: str
    config: RunConfig
    protocol: Protocol = "honest"
    labels: Mapping[str, Label] = field(default_factory=dict)
    search: Search | None = None
    tuned_as: str | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"arm {self.name!r}: a name is small letters, digits, '.', '_' or '-'")
        if self.search and self.tuned_as:
            raise ValueError(f"arm {self.name}: it has a search and takes {self.tuned_as}'s")

    def run(self, study: str, seed: int) -> RunConfig:
        """The run of this arm with that seed."""
        return dataclasses.replace(self.config, name=study, variant=self.name, seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """``arm`` minus ``baseline``, paired by seed. ``paper`` is the papers' own difference."""

    arm: str
    baseline: str
    measure: str = "loss"
    paper: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """What a paper reports for an arm: measure → value, in our units."""

    arm: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One number and where it has to lie: ``low`` ≤ ``value`` ≤ ``high``, None for no bound.

    ``about`` says what it is and why that interval. ``problem`` says why it cannot be judged.
    ``interval``: 95 % confidence, where there is one.
    """

    name: str
    value: float
    about: str
    role: Role = "claim"
    low: float | None = None
    high: float | None = None
    interval: tuple[float, float] | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        if self.role != "note" and self.low is None and self.high is None:
            raise ValueError(f"finding {self.name!r}: a {self.role} needs low or high")

    @property
    def passed(self) -> bool:
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return above and below and math.isfinite(self.value) and not self.problem

    @property
    def expected(self) -> str:
        """The interval in words."""
        if self.low is None and self.high is None:
            return "reported only"
        if self.low is None:
            return f"at most {self.high:.12g}"
        if self.high is None:
            return f"at least {self.low:.12g}"
        return f"{self.low:.12g} to {self.high:.12g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the runs say of a claim; ``sentence`` says it in words, with our numbers.

    ``rule`` says in words how the numbers became the verdict; ``findings`` are those numbers, where
    the rule has bounds for each.
    """

    claim: str
    verdict: VerdictName
    sentence: str
    paper: str = ""
    ours: str = ""
    rule: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """An experiment made of training runs: every arm with every seed.

    ``scale`` is a word for how large it is. ``command`` makes its runs, if that is not
    `muonlab study run` with its name. ``known``: figures of runs by fingerprint, from committed
    results, that are not made again.
    ``judge`` reads the finished runs (a row each: ``arm``, ``seed``, ``protocol``, the labels,
    ``loss``, and every figure of the run's summary) and returns a verdict per claim. ``loss`` is of
    the test split wherever the runs have read it. It is called when each arm
    that it needs may still lack runs, and says so instead of guessing.
    """

    name: str
    scale: Scale
    question: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    claims: tuple[str, ...] = ()
    judge: Callable[[pd.DataFrame], list[Verdict]] = field(default=lambda frame: [])
    comparisons: tuple[Comparison, ...] = ()
    paper: tuple[PaperRow, ...] = ()
    measures: tuple[str, ...] = ("loss", "val/accuracy", "val/perplexity", "steady_seconds")
    notes: tuple[str, ...] = ()
    command: str = ""
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names(self)
        if not self.arms or not self.seeds:
            raise ValueError(f"study {self.name} has no arms or no seeds")
        names = Counter(arm.name for arm in self.arms)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"study {self.name} has two arms named {twice[0]!r}")
        labelled: dict[tuple[object, ...], str] = {}
        for arm in self.arms:
            same = labelled.setdefault((arm.protocol, *sorted(arm.labels.items())), arm.name)
            if arm.labels and same != arm.name:
                labels = ", ".join(f"{label} {level}" for label, level in arm.labels.items())
                raise ValueError(f"arms {same!r} and {arm.name!r} have the same labels: {labels}")
        searches = {arm.name for arm in self.arms if arm.search}
        for arm in self.arms:
            if arm.tuned_as and arm.tuned_as not in searches:
                raise ValueError(f"arm {arm.name}: {arm.tuned_as!r} is no arm with a search")
            for seed in arm.search.seeds if arm.search else ():
                if seed in self.seeds:
                    raise ValueError(f"arm {arm.name}: tuning seed {seed} is a test seed")
        for comparison in self.comparisons:
            for name in (comparison.arm, comparison.baseline):
                if name not in names:
                    raise ValueError(f"study {self.name} compares {name!r}, which is no arm")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def fingerprint(self) -> str:
        """A hash of every run, search and seed that the definition asks for."""
        facts = [
            (
                arm.name,
                arm.config.fingerprint(),
                dataclasses.asdict(arm.search) if arm.search else None,
                arm.tuned_as,
            )
            for arm in self.arms
        ]
        text = json.dumps([self.scale, facts, self.seeds], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What measuring needs from outside: where corpora are kept, and what hears the share done."""

    cache_dir: Path | None = None  # None: the user's cache
    advance: Callable[[float], None] = field(default=lambda share: None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """An experiment that counts, times or checks a theorem, and has no training runs.

    ``measure`` returns its rows; ``judge`` and ``draw`` (a figure with its caption) read them.
    """

    name: str
    scale: Scale
    question: str
    measure: Callable[[Context], pd.DataFrame]
    claims: tuple[str, ...] = ()
    judge: Callable[[pd.DataFrame], list[Verdict]] = field(default=lambda rows: [])
    draw: "Callable[[pd.DataFrame], Figure] | None" = None
    notes: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        _check_names(self)


Experiment = Study | Measurement


def _check_names(experiment: Experiment) -> None:
    """Raise ValueError unless name and scale can name a folder."""
    for what in ("name", "scale"):
        value = getattr(experiment, what)
        if not NAME.fullmatch(value):
            raise ValueError(
                f"study {experiment.name!r}: {what} {value!r} must be small letters, digits, "
                f"'.', '_' or '-'"
            )
