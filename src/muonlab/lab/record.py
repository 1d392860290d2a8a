"""What a study's folder says of itself: study.json, verdicts.json, and the state of every study."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from muonlab import machine
from muonlab.files import as_json, write_whole
from muonlab.lab.experiment import VERDICTS, Experiment, Measurement, Study, Verdict
from muonlab.lab.plan import RECORD, Job, Outcome, Plan, folder, read_record
from muonlab.lab.worker import FAILURE
from muonlab.manifest import git_state
from muonlab.runs import RunDirectory, now

ROWS = "measurement.csv"
PACKAGES = ("muonlab", "torch", "optuna", "scipy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How far a study is. ``tuned``: arm → chosen values, None while its search goes on."""

    counts: Mapping[str, int]  # of finished, failed, running, interrupted, to do
    tuned: Mapping[str, Mapping[str, float] | None]
    changed: bool  # the definition is another one than the recorded runs were made for


def command(experiment: Experiment) -> str:
    """The command that makes the experiment's runs, or what is missing of them."""
    run = f"muonlab study run {experiment.name} --scale {experiment.scale}"
    return experiment.command or run


def write_record(plan: Plan) -> None:
    """Write study.json: the definition's fingerprint, its runs, the tuned values, the trials."""
    study = plan.study
    arms = {
        arm.name: {
            "protocol": arm.protocol,
            "labels": dict(arm.labels),
            "tuned_as": arm.tuned_as,
            "tuned": plan.tuned(arm),
            "runs": {str(job.config.seed): _place(plan, job) for job in plan.tests(arm)},
        }
        for arm in study.arms
    }
    searches = {
        name: {
            "complete": state.complete,
            "chosen": state.chosen,
            "regret": state.regret if math.isfinite(state.regret) else None,  # JSON has no NaN
            "trials": [_trial(plan, *run) for run in state.trials],
            "repeats": [_trial(plan, *run) for run in state.repeats],
        }
        for name, state in plan.searches.items()
    }
    facts = {"definition": study.fingerprint(), "arms": arms, "searches": searches}
    write_facts(study, plan.root, facts)


def _trial(plan: Plan, job: Job, outcome: Outcome | None) -> dict[str, Any]:
    return {
        "values": dict(job.values),
        "seed": job.config.seed,
        "run": _place(plan, job),
        "status": outcome.status if outcome else "to do",
        "figures": dict(outcome.figures) if outcome else {},
    }


def write_facts(experiment: Experiment, root: Path, facts: Mapping[str, Any]) -> None:
    """Write study.json: ``facts`` beside question, claims, command, code and machine."""
    common = {
        "study": experiment.name,
        "scale": experiment.scale,
        "question": experiment.question,
        "claims": list(experiment.claims),
        "command": command(experiment),
        "git": git_state(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "machine": machine.describe(),
        "written": now(),
    }
    _write(folder(experiment, root), RECORD, common | dict(facts))


def write_verdicts(experiment: Experiment, root: Path, verdicts: list[Verdict]) -> None:
    _write(folder(experiment, root), VERDICTS, facts_of(verdicts))


def facts_of(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as JSON data: a number that is not finite is null, for JSON has none."""
    return [_finite(asdict(verdict)) for verdict in verdicts]


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def status(experiment: Experiment, root: Path) -> Status:
    """How far it is, from study.json and the files that runs leave, without reading the runs."""
    record = read_record(experiment, root) or {}
    if isinstance(experiment, Measurement):
        done = (folder(experiment, root) / ROWS).exists()
        return Status(counts={"finished" if done else "to do": 1}, tuned={}, changed=False)
    changed = bool(record) and record["definition"] != experiment.fingerprint()
    if changed or not record:
        return Status(counts={"to do": _num_runs(experiment)}, tuned={}, changed=changed)
    arms, searches = record["arms"], record["searches"]
    places = [place for arm in arms.values() for place in arm["runs"].values()]
    places += [
        run["run"] for search in searches.values() for run in search["trials"] + search["repeats"]
    ]
    counts = Counter(_run_status(root / place) for place in places)
    unnamed = _num_runs(experiment) - len(places)
    if unnamed > 0:
        counts["to do"] += unnamed
    tuned = {name: arm["tuned"] for name, arm in arms.items() if arm["tuned"] != {}}
    return Status(counts=counts, tuned=tuned, changed=False)


def _num_runs(study: Study) -> int:
    trials = sum(arm.search.total_runs for arm in study.arms if arm.search)
    return len(study.arms) * len(study.seeds) + trials


def _run_status(path: Path) -> str:
    """As `RunDirectory.status`, locking only what may be running."""
    if (path / "summary.json").exists():
        return "finished"
    if (path / FAILURE).exists():
        return "failed"
    if not (path / "config.json").exists():
        return "to do"
    found = RunDirectory(path).status()
    return "interrupted" if found == "started" else found


def _place(plan: Plan, job: Job) -> str:
    """Where the run is or will be, below the root: another study's, if it is shared."""
    outcome = plan.outcome(job)
    return (outcome.path if outcome else job.path).relative_to(plan.root).as_posix()


def _write(directory: Path, name: str, values: Any) -> None:
    """Two engines on one study write the same files."""
    directory.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(directory / ".lock"):
        write_whole(directory / name, as_json(values))
