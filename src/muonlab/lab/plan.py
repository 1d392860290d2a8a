"""Which runs a study is made of, as far as the finished ones decide it; read from disk alone."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muonlab.config import RunConfig, override
from muonlab.lab import tuning
from muonlab.lab.experiment import Arm, Experiment, Search, Study
from muonlab.lab.worker import FAILURE
from muonlab.runs import RunDirectory, RunError

ROOT = Path("runs/studies")
ALL_DIVERGED = "every trial of its search diverged"
JobKind = Literal["trial", "repeat", "test"]
RECORD = "study.json"  # what the folder of a study holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of a study: a tuning trial, a finalist's repeat, or a test run of an arm."""

    arm: str
    kind: JobKind
    config: RunConfig
    values: Mapping[str, float]  # tuned fields, already in the config
    fingerprint: str
    path: Path

    @property
    def reads_test(self) -> bool:
        """Whether the run ends with the test split. No run of a search sees it."""
        return self.kind == "test"

    @property
    def label(self) -> str:
        if self.kind == "test":
            return f"{self.arm} seed {self.config.seed}"
        tried = ", ".join(f"{field} {value:g}" for field, value in self.values.items())
        seed = f", seed {self.config.seed}" if self.kind == "repeat" else ""
        return f"{self.arm} {self.kind} {tried}{seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended. A diverged run is a result, its loss is infinite; an error is none."""

    status: Literal["finished", "diverged", "error"]
    path: Path
    figures: Mapping[str, Any]  # of the summary
    error: str = ""

    def value(self, measure: str) -> float:
        """The figure to compare by, lower is better: infinite where it is not a finite number."""
        value = self.figures.get(measure, math.inf)
        return value if math.isfinite(value) else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchState:
    """An arm's search: its trials in the order they were asked for, its finalists' repeats, and
    what they chose.
    """

    trials: tuple[tuple[Job, Outcome | None], ...]
    complete: bool
    repeats: tuple[tuple[Job, Outcome | None], ...] = ()
    chosen: Mapping[str, float] | None = None  # of a complete search, unless every trial diverged
    regret: float = math.nan  # what the choice may have lost; NaN: not measured

    @property
    def runs(self) -> tuple[tuple[Job, Outcome | None], ...]:
        return self.trials + self.repeats


def folder_name(experiment: Experiment) -> str:
    return f"{experiment.name}.{experiment.scale}"


def folder(experiment: Experiment, root: Path) -> Path:
    """Where the runs of that study at that scale are kept."""
    return root / folder_name(experiment)


class Plan:
    """The runs of ``study`` below ``root``.

    A finished run of the same fingerprint in another study's folder serves as well. `refresh` reads
    what has finished since: trials depend on finished trials, and tuned arms on their search.
    """

    def __init__(self, study: Study, root: Path) -> None:
        self.study = study
        self.root = root
        self.searches: dict[str, SearchState] = {}
        self.jobs: list[Job] = []  # all that can be named yet, trials first
        self._made: dict[tuple[Any, ...], Job] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._proposals: dict[tuple[Any, ...], list[dict[str, float]]] = {}
        self._elsewhere = _finished_runs(root)
        self._recorded = _recorded_searches(study, root)
        self.refresh()

    def refresh(self) -> None:
        """Bring ``jobs`` and ``searches`` to what is on disk."""
        arms = self.study.arms
        self.searches = {arm.name: self._search(arm, arm.search) for arm in arms if arm.search}
        trials = [job for state in self.searches.values() for job, _ in state.runs]
        self.jobs = [*trials, *self._tests()]
        for job in self.jobs:
            self._look(job)

    def outcome(self, job: Job) -> Outcome | None:
        """How the run ended; None while it had not at the last `refresh`."""
        return self._outcomes.get(job.fingerprint)

    def note(self, job: Job, outcome: Outcome) -> None:
        """Remember an end that the disk could not take."""
        self._outcomes[job.fingerprint] = outcome

    def to_do(self) -> list[Job]:
        """Runs that can be made now, each fingerprint once.

        Test runs wait for all searches that can go on: the test split is read after every choice.
        """
        open_jobs = [job for job in self.jobs if self.outcome(job) is None]
        choices = [job for job in open_jobs if job.kind != "test"]
        return list({job.fingerprint: job for job in choices or open_jobs}.values())

    def unnamed(self) -> list[Arm]:
        """The arm of every run that waits for others: later trials, tests of arms in tuning."""
        arms = []
        for arm in self.study.arms:
            source = self.source(arm)
            if source and not self.searches[source].complete:
                arms += [arm] * len(self.study.seeds)
            if arm.search and not (state := self.searches[arm.name]).complete:
                arms += [arm] * max(arm.search.total_runs - len(state.runs), 0)
        return arms

    def source(self, arm: Arm) -> str | None:
        """The arm whose search tunes this one."""
        return arm.name if arm.search else arm.tuned_as

    def tuned(self, arm: Arm) -> Mapping[str, float] | None:
        """The tuned values of an arm, none if it has no search; None while they are not known."""
        source = self.source(arm)
        return {} if source is None else self.searches[source].chosen

    def tests(self, arm: Arm) -> list[Job]:
        """The test runs of an arm, one a seed; empty while it is being tuned."""
        return [job for job in self._tests() if job.arm == arm.name]

    def strangers(self) -> list[Path]:
        """Runs in the study's folder that its definition no longer asks for."""
        wanted = {job.path for job in self.jobs}
        found = folder(self.study, self.root).glob("*/config.json")
        runs = {path.parent for path in found if ".damaged-" not in path.parent.name}
        return sorted(runs - wanted)

    def _tests(self) -> Iterator[Job]:
        """Seed by seed: a study that is cut has whole pairs."""
        for seed in self.study.seeds:
            for arm in self.study.arms:
                values = self.tuned(arm)
                if values is not None:
                    yield self._job(arm, "test", seed, values)

    def _search(self, arm: Arm, search: Search) -> SearchState:
        """The recorded search if it is complete, else the tuner's answer to the runs on disk."""
        if recorded := self._recorded.get(arm.name):
            trials = tuple(
                self._looked(arm, "trial", search.seed, trial) for trial in recorded["trials"]
            )
            repeats = self._repeats(arm, search, recorded["finalists"])
            if all(outcome is not None for _, outcome in trials + repeats):
                regret = recorded["regret"]
                return SearchState(
                    trials=trials,
                    repeats=repeats,
                    complete=True,
                    chosen=recorded["chosen"],
                    regret=math.nan if regret is None else regret,
                )
        return self._replay(arm, search)

    def _replay(self, arm: Arm, search: Search) -> SearchState:
        """Ask the tuner again, from the first trial on: the runs on disk are its only memory."""
        finished: list[tuning.Trial] = []
        trials: dict[str, tuple[Job, Outcome | None]] = {}
        while True:
            key = (arm.name, *((*trial.values.items(), trial.loss) for trial in finished))
            if key not in self._proposals:
                self._proposals[key] = tuning.next_trials(search, finished, arm.name)
            proposals = self._proposals[key]
            if not proposals:
                return self._decide(arm, search, tuple(trials.values()), finished)
            before = len(finished)
            for values in proposals:
                job, outcome = self._looked(arm, "trial", search.seed, values)
                trials[job.fingerprint] = (job, outcome)
                if outcome is not None and outcome.status != "error":
                    loss = outcome.value(search.measure)
                    finished.append(tuning.Trial(values=values, loss=loss))
            if len(finished) == before:
                return SearchState(trials=tuple(trials.values()), complete=False)

    def _decide(
        self,
        arm: Arm,
        search: Search,
        trials: tuple[tuple[Job, Outcome | None], ...],
        finished: list[tuning.Trial],
    ) -> SearchState:
        """Of all trials: the finalists' repeats, and the choice once these have been made."""
        finalists = tuning.finalists(search, finished)
        if not finalists:
            return SearchState(trials=trials, complete=True)
        repeats = self._repeats(arm, search, finalists)
        repeated = [
            tuning.Trial(values=job.values, loss=outcome.value(search.measure))
            for job, outcome in repeats
            if outcome is not None and outcome.status != "error"
        ]
        if len(repeated) < len(repeats):
            return SearchState(trials=trials, repeats=repeats, complete=False)
        choice = tuning.choose(search, finished, repeated)
        return SearchState(
            trials=trials,
            repeats=repeats,
            complete=True,
            chosen=choice.values,
            regret=choice.regret,
        )

    def _repeats(
        self, arm: Arm, search: Search, finalists: list[dict[str, float]]
    ) -> tuple[tuple[Job, Outcome | None], ...]:
        return tuple(
            self._looked(arm, "repeat", seed, values)
            for seed in search.seeds[1:]
            for values in finalists
        )

    def _looked(
        self, arm: Arm, kind: JobKind, seed: int, values: Mapping[str, float]
    ) -> tuple[Job, Outcome | None]:
        job = self._job(arm, kind, seed, values)
        return job, self._look(job)

    def _job(self, arm: Arm, kind: JobKind, seed: int, values: Mapping[str, float]) -> Job:
        key = (arm.name, kind, seed, *values.items())
        if key not in self._made:
            variant = arm.name if kind == "test" else f"{arm.name}.trial"
            config = dataclasses.replace(
                override(arm.config, [f"{field}={value!r}" for field, value in values.items()]),
                name=folder_name(self.study),
                variant=variant,
                seed=seed,
            )
            self._made[key] = Job(
                arm=arm.name,
                kind=kind,
                config=config,
                values=values,
                fingerprint=config.fingerprint(),
                path=RunDirectory.place(self.root, config).path,
            )
        return self._made[key]

    def _look(self, job: Job) -> Outcome | None:
        if job.fingerprint not in self._outcomes:
            outcome = read_outcome(job.path) or self._reuse(job) or self._known(job)
            if outcome is None:
                return None
            self._outcomes[job.fingerprint] = outcome
        return self._outcomes[job.fingerprint]

    def _known(self, job: Job) -> Outcome | None:
        figures = self.study.known.get(job.fingerprint)
        return Outcome(status="finished", path=job.path, figures=figures) if figures else None

    def _reuse(self, job: Job) -> Outcome | None:
        for path in self._elsewhere.get(job.fingerprint[:8], []):
            try:
                same = RunDirectory(path).manifest()["fingerprint"] == job.fingerprint
            except RunError:
                continue
            if same and (outcome := read_outcome(path)):
                return outcome
        return None


def read_outcome(path: Path) -> Outcome | None:
    """How the run in that directory ended; None if it has not, or if its end is unreadable."""
    if (path / "summary.json").exists():
        with contextlib.suppress(RunError):
            return Outcome(status="finished", path=path, figures=RunDirectory(path).summary())
    if not (path / FAILURE).exists():
        return None
    try:
        failure = json.loads((path / FAILURE).read_text(encoding="utf-8"))
        return Outcome(
            status="diverged" if failure["diverged"] else "error",
            path=path,
            figures={},
            error=failure["error"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_record(experiment: Experiment, root: Path) -> dict[str, Any] | None:
    """What study.json says; None if there is none or it is damaged, for it can be made again."""
    try:
        record = json.loads((folder(experiment, root) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("study") == experiment.name else None


def _recorded_searches(study: Study, root: Path) -> dict[str, Any]:
    """Complete searches of this definition: another version of the tuner must not undo them."""
    record = read_record(study, root)
    if record is None or record["definition"] != study.fingerprint():
        return {}
    return {
        name: {
            "chosen": search["chosen"],
            "regret": search["regret"],
            "trials": [trial["values"] for trial in search["trials"]],
            "finalists": _distinct([repeat["values"] for repeat in search["repeats"]]),
        }
        for name, search in record["searches"].items()
        if search["complete"]
    }


def _distinct(settings: list[dict[str, float]]) -> list[dict[str, float]]:
    """In their order: each is listed once for every seed."""
    return list({tuple(values.items()): values for values in settings}.values())


def _finished_runs(root: Path) -> dict[str, list[Path]]:
    """Runs with a summary in any study's folder, by the eight digits that end their name."""
    found: dict[str, list[Path]] = {}
    for summary in sorted(root.glob("*/*/summary.json")):
        found.setdefault(summary.parent.name[-8:], []).append(summary.parent)
    return found
