"""What a study's runs say, as numbers: for its verdicts and its report."""

import contextlib
import math
import statistics
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.lab.counts import read_counts, with_counts
from muonlab.lab.experiment import Arm, Experiment, Measurement, Study, Verdict
from muonlab.lab.plan import ALL_DIVERGED, Job, Outcome, Plan, SearchState, folder
from muonlab.lab.record import ROWS
from muonlab.lab.tuning import Box, Trial, at_edge, plan
from muonlab.runs import RunDirectory, RunError


class StudyResults:
    """A study's runs below ``root``, read from disk when first asked for, each file once."""

    def __init__(self, study: Study, root: Path) -> None:
        self.study = study
        self._plan = Plan(study, root)
        self._rows: dict[Path, list[dict[str, Any]]] = {}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a test run, whether it has been made or not.

        Columns: arm, seed, protocol, status (finished, failed or missing), error, run (its
        directory, "" if missing), the arm's labels, ``tuned/<field>``, ``regret`` (of the search
        that tuned it, 0 without one, NaN where it was not measured), ``loss`` and ``split`` (see
        `with_headline`), ``unigram`` and ``bigram`` (what counting comes to), every figure of the
        summaries, and ``steady_seconds``: updates times the median update, which a machine that
        was busy or paused for a while does not change. A run that diverged has failed with an
        infinite ``val/loss``; any other failure has no figures.
        """
        rows = []
        for arm in self.study.arms:
            jobs = {job.config.seed: job for job in self._plan.tests(arm)}
            rows += [self._row(arm, seed, jobs.get(seed)) for seed in self.study.seeds]
        frame = pd.DataFrame(rows)
        for figure in ("val/loss", "steady_seconds"):
            if figure not in frame:  # nothing has finished
                frame[figure] = math.nan
        keys = {arm.name: arm.config.data.cache_key() for arm in self.study.arms}
        counts = read_counts(folder(self.study, self._plan.root))
        return with_counts(with_headline(frame), keys, counts)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the runs say of the study's claims."""
        return self.study.judge(self.frame)

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """The metrics of every test run that has begun: directory → one row a logged step."""
        curves = {}
        for arm in self.study.arms:
            for job in self._plan.tests(arm):
                outcome = self._plan.outcome(job)
                path = outcome.path if outcome else job.path
                if rows := self._metrics(path):
                    curves[str(path)] = pd.DataFrame(rows).assign(
                        arm=arm.name, seed=job.config.seed
                    )
        return curves

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Every run of a search: arm, kind (trial or repeat), seed, status, loss, run,
        ``tuned/<field>``, chosen (those of the chosen setting).
        """
        rows = []
        for arm in self.study.arms:
            if arm.search is None:
                continue
            state = self._plan.searches[arm.name]
            for job, outcome in state.runs:
                measured = outcome is not None and outcome.status != "error"
                row: dict[str, Any] = {
                    "arm": arm.name,
                    "kind": job.kind,
                    "seed": job.config.seed,
                    "status": outcome.status if outcome else "missing",
                    "loss": outcome.value(arm.search.measure) if outcome and measured else math.nan,
                    "run": str(outcome.path) if outcome else "",
                    "chosen": state.chosen is not None and dict(job.values) == dict(state.chosen),
                }
                rows.append(row | {f"tuned/{field}": value for field, value in job.values.items()})
        return pd.DataFrame(rows)

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """What every finished test run was made of and on: directory → manifest, unless damaged."""
        found = {}
        for path in self.frame.loc[self.frame["status"] == "finished", "run"]:
            with contextlib.suppress(RunError):
                found[path] = RunDirectory(Path(path)).manifest()
        return found

    @cached_property
    def spaces(self) -> dict[str, Box]:
        """The ranges that searches have come to, extended: arm → field → (low, high)."""
        return {
            arm.name: plan(
                arm.search,
                [
                    Trial(values=job.values, loss=outcome.value(arm.search.measure))
                    for job, outcome in self._plan.searches[arm.name].trials
                    if outcome and outcome.status != "error"
                ],
                arm.name,
            ).space
            for arm in self.study.arms
            if arm.search
        }

    @cached_property
    def edges(self) -> dict[str, dict[str, str]]:
        """Arms whose complete search has its best value at an edge: field → "low" or "high"."""
        found = {
            name: at_edge(self.spaces[name], state.chosen)
            for name, state in self._plan.searches.items()
            if state.complete and state.chosen
        }
        return {name: sides for name, sides in found.items() if sides}

    def _row(self, arm: Arm, seed: int, job: Job | None) -> dict[str, Any]:
        row: dict[str, Any] = {"arm": arm.name, "seed": seed, "protocol": arm.protocol}
        row |= {"status": "missing", "error": "", "run": ""}
        tuned = self._plan.tuned(arm) or {}
        row |= {f"tuned/{field}": value for field, value in tuned.items()}
        source = self._plan.source(arm)
        row["regret"] = self._plan.searches[source].regret if source else 0.0
        if source and _hopeless(self._plan.searches[source]):
            row |= {"status": "failed", "error": ALL_DIVERGED, "val/loss": math.inf}
        elif job and (outcome := self._plan.outcome(job)):
            row |= self._ended(outcome)
        return row | dict(arm.labels)  # a label may have the name of a figure, such as "steps"

    def _ended(self, outcome: Outcome) -> dict[str, Any]:
        row = {"error": outcome.error, "run": str(outcome.path), **outcome.figures}
        if outcome.status != "finished":
            row["val/loss"] = math.nan if outcome.status == "error" else math.inf
            return row | {"status": "failed"}
        for loss in ("val/loss", "test/loss"):
            if loss in row and not math.isfinite(row[loss]):
                row[loss] = math.inf
        row.setdefault("val/loss", math.inf)
        rows = self._metrics(outcome.path)
        steps = [row["train/step_seconds"] for row in rows if "train/step_seconds" in row]
        row["steady_seconds"] = len(steps) * statistics.median(steps) if steps else math.nan
        return row | {"status": "finished"}

    def _metrics(self, path: Path) -> list[dict[str, Any]]:
        """A run's rows; none if it is damaged: the engine sets it aside."""
        if path not in self._rows:
            try:
                self._rows[path] = RunDirectory(path).metrics()
            except RunError:
                self._rows[path] = []
        return self._rows[path]


def with_headline(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with ``loss``, which verdicts rest on, and ``split``, which it is of.

    That is the test split for all arms of a protocol whose finished runs have each read it, else
    the validation split: two splits are never compared. A diverged run's loss is infinite.
    """
    frame = frame.assign(loss=frame["val/loss"], split="validation")
    if "test/loss" not in frame:
        return frame
    finished = frame["status"] == "finished"
    for protocol in frame.loc[finished, "protocol"].unique():
        rows = finished & (frame["protocol"] == protocol)
        losses = frame.loc[rows, "test/loss"]
        if losses.notna().all():
            frame.loc[rows, "loss"] = losses
            frame.loc[frame["protocol"] == protocol, "split"] = "test"
    return frame


def _hopeless(search: SearchState) -> bool:
    return search.complete and search.chosen is None


def measurement_frame(measurement: Measurement, root: Path) -> pd.DataFrame:
    """The rows of a measurement; empty if it has not been made. Raises RunError if damaged."""
    path = folder(measurement, root) / ROWS
    try:
        return pd.read_csv(path) if path.exists() else pd.DataFrame()
    except ValueError as error:
        raise RunError(f"{path}: {error}; delete it to measure again") from None


def judge_measurement(measurement: Measurement, frame: pd.DataFrame) -> list[Verdict]:
    """What its rows say; none without rows. Raises RunError if they lack what it reads."""
    try:
        return measurement.judge(frame) if len(frame) else []
    except KeyError as error:
        raise RunError(
            f"the rows of {measurement.name} lack {error}: an earlier version measured them; "
            f"delete {ROWS} and measure again"
        ) from None


def judge(experiment: Experiment, root: Path) -> list[Verdict]:
    """What is on disk says of the experiment's claims, as far as it does."""
    if isinstance(experiment, Measurement):
        return judge_measurement(experiment, measurement_frame(experiment, root))
    return StudyResults(experiment, root).verdicts
