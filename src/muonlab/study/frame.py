"""A study's runs as numbers, for its verdicts and its report."""

import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.runs import RunDirectory, RunError
from muonlab.study.experiment import Experiment, Measurement, Study, Verdict
from muonlab.study.plan import ALL_DIVERGED, Plan, SearchState, folder
from muonlab.study.record import ROWS


def study_frame(study: Study, root: Path) -> pd.DataFrame:
    """One row a test run, whether it has been made or not.

    Columns: arm, seed, protocol, status (finished, failed or missing), error, run (its directory,
    "" if missing), the arm's labels, ``tuned/<field>``, every figure of the summaries, and
    ``steady_seconds``: updates times the median update, which a machine that was busy or paused
    for a while does not change. A run that diverged has failed with an infinite ``val/loss``; any
    other failure has no figures.
    """
    plan = Plan(study, root)
    rows = []
    for arm in study.arms:
        jobs = {job.config.seed: job for job in plan.tests(arm)}
        tuned = plan.tuned(arm) or {}
        for seed in study.seeds:
            outcome = plan.outcome(jobs[seed]) if seed in jobs else None
            row: dict[str, Any] = {"arm": arm.name, "seed": seed, "protocol": arm.protocol}
            row |= {"status": "missing", "error": "", "run": ""} | dict(arm.labels)
            row |= {f"tuned/{field}": value for field, value in tuned.items()}
            if (source := plan.source(arm)) and _hopeless(plan.searches[source]):
                row |= {"status": "failed", "error": ALL_DIVERGED, "val/loss": math.inf}
            elif outcome is not None:
                finished = outcome.status == "finished"
                row["status"] = "finished" if finished else "failed"
                row["error"], row["run"] = outcome.error, str(outcome.path)
                row |= outcome.figures
                if finished:
                    row["steady_seconds"] = _steady_seconds(outcome.path)
                if not math.isfinite(row.get("val/loss", math.inf)) or not finished:
                    row["val/loss"] = math.nan if outcome.status == "error" else math.inf
            rows.append(row)
    frame = pd.DataFrame(rows)
    if "val/loss" not in frame:  # nothing has finished
        frame["val/loss"] = math.nan
    return frame


def _steady_seconds(path: Path) -> float:
    steps = [row["train/step_seconds"] for row in _metrics(path) if "train/step_seconds" in row]
    return len(steps) * statistics.median(steps) if steps else math.nan


def _metrics(path: Path) -> list[dict[str, Any]]:
    """A run's rows; none if it is damaged: the engine sets it aside."""
    try:
        return RunDirectory(path).metrics()
    except RunError:
        return []


def _hopeless(search: SearchState) -> bool:
    return search.complete and search.chosen is None


def study_curves(study: Study, root: Path) -> dict[str, pd.DataFrame]:
    """The metrics of every test run that has begun: run directory → one row a logged step."""
    plan = Plan(study, root)
    curves = {}
    for arm in study.arms:
        for job in plan.tests(arm):
            outcome = plan.outcome(job)
            path = outcome.path if outcome else job.path
            if rows := _metrics(path):
                curves[str(path)] = pd.DataFrame(rows).assign(arm=arm.name, seed=job.config.seed)
    return curves


def study_trials(study: Study, root: Path) -> pd.DataFrame:
    """Every tuning trial: arm, status, loss, run, ``tuned/<field>``, chosen (the arm's best)."""
    plan = Plan(study, root)
    rows = []
    for arm in study.arms:
        if arm.search is None:
            continue
        state = plan.searches[arm.name]
        for job, outcome in state.trials:
            measured = outcome is not None and outcome.status != "error"
            row: dict[str, Any] = {
                "arm": arm.name,
                "status": outcome.status if outcome else "missing",
                "loss": outcome.value(arm.search.measure) if outcome and measured else math.nan,
                "run": str(outcome.path) if outcome else "",
                "chosen": state.chosen is not None and dict(job.values) == dict(state.chosen),
            }
            rows.append(row | {f"tuned/{field}": value for field, value in job.values.items()})
    return pd.DataFrame(rows)


def measurement_frame(measurement: Measurement, root: Path) -> pd.DataFrame:
    """The rows of a measurement; empty if it has not been made."""
    path = folder(measurement, root) / ROWS
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def judge(experiment: Experiment, root: Path) -> list[Verdict]:
    """What the runs on disk say of the experiment's claims."""
    if isinstance(experiment, Measurement):
        frame = measurement_frame(experiment, root)
        return experiment.judge(frame) if len(frame) else []
    return experiment.judge(study_frame(experiment, root))
