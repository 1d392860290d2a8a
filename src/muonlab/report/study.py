"""The report of a study: the verdict first, then everything that it rests on."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.lab.arms import mean, regret
from muonlab.lab.experiment import Experiment, Measurement, Study, Verdict
from muonlab.lab.plan import read_record
from muonlab.lab.record import command
from muonlab.lab.results import StudyResults, judge_measurement, measurement_frame
from muonlab.report.content import (
    Banner,
    Column,
    Drawing,
    Figure,
    Picture,
    Report,
    Section,
    Table,
)
from muonlab.report.curves import CURVES, Series, clock_runs_forwards, curve_figures
from muonlab.report.files import RUNS, write_report
from muonlab.report.frames import hardware
from muonlab.report.kept import (
    KeptResults,
    definition_changed,
    read_made,
    read_rows,
    write_kept,
)
from muonlab.report.study_figures import label_figures, search_figures, value_figures
from muonlab.report.study_tables import (
    PROTOCOLS,
    arm_label,
    arm_warnings,
    arms_table,
    comparisons_table,
    protocols_table,
    runs_table,
    trials_table,
)
from muonlab.report.verdicts import banner, findings_table
from muonlab.runs import RunError

TIMES_APART = 1.2
MANY = 4  # names in a notice
Item = Figure | Picture


def write_study(experiment: Experiment, root: Path, directory: Path) -> Path:
    """Write index.html, report.md with its PNGs, runs.csv and verdicts.json; returns the page.

    ``root`` holds the folders of the studies' runs. Runs that are missing, failed or damaged are
    shown as such: a report can be made at any time. Raises RunError if a measurement's rows are
    damaged, or if ``directory`` holds a report of more runs than there are below ``root``.
    """
    record = read_record(experiment, root) or {}
    if isinstance(experiment, Measurement):
        frame = measurement_frame(experiment, root)
        verdicts = judge_measurement(experiment, frame)
        lines, trials, machines = _origin(experiment, record), pd.DataFrame(), []
        report = measurement_report(experiment, frame, verdicts, lines)
    else:
        results = StudyResults(experiment, root)
        verdicts, frame, trials = results.verdicts, results.frame, results.trials
        lines, machines = made_of(results, record), hardware_of(results)
        report = study_report(results, lines)
    _refuse_to_lose(experiment, frame, directory)
    page = write_report(report, directory, frame.to_csv(index=False), verdicts)
    write_kept(directory, trials, machines, lines)
    return page


def rewrite_study(experiment: Experiment, directory: Path, cache_dir: Path | None = None) -> Path:
    """Make the report in ``directory`` anew by today's rules, from the rows that it has kept.

    Nothing is measured again. Raises RunError where there are no rows, or where they lack arms that
    the definition has today.
    """
    made = read_made(directory)
    if isinstance(experiment, Measurement):
        frame, trials = read_rows(directory), pd.DataFrame()
        verdicts = judge_measurement(experiment, frame)
        report = measurement_report(experiment, frame, verdicts, made["lines"])
    else:
        results = KeptResults(experiment, directory, cache_dir)
        verdicts, frame, trials = results.verdicts, results.frame, results.trials
        report = study_report(results, made["lines"])
    page = write_report(report, directory, frame.to_csv(index=False), verdicts)
    write_kept(directory, trials, made["hardware"], made["lines"])
    return page


def count_results(frame: pd.DataFrame) -> int:
    """The rows that hold a result: finished or diverged runs, or everything that was measured."""
    return len(frame.dropna(subset=["val/loss"])) if "val/loss" in frame else len(frame)


def _refuse_to_lose(experiment: Experiment, frame: pd.DataFrame, directory: Path) -> None:
    """Raise RunError where the report in ``directory`` was made from more results than these."""
    path = directory / RUNS
    try:
        kept = count_results(pd.read_csv(path)) if path.exists() else 0
    except pd.errors.EmptyDataError:
        kept = 0
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; delete it to write a new report") from None
    if (found := count_results(frame)) < kept:
        unit = "measured rows" if isinstance(experiment, Measurement) else "runs"
        raise RunError(
            f"{directory} holds a report of {kept} {unit}, and there are {found} here: it was not "
            "overwritten; --results-dir DIRECTORY writes the new report elsewhere"
        )


def study_report(results: StudyResults | KeptResults, lines: Sequence[str]) -> Report:
    """The whole report as content; ``lines`` say how it was made."""
    study, frame, trials = results.study, results.frame, results.trials
    labels = {arm.name: arm_label(arm) for arm in study.arms}
    series = [
        Series(arm=labels[arm], seed=int(seed), metrics=rows)
        for rows in results.curves.values()
        for arm, seed in zip(rows["arm"][:1], rows["seed"][:1], strict=True)
    ]
    made = frame.loc[frame["status"] != "missing"]
    measured = [
        Section(
            title="Arms",
            items=[
                *filter(None, (arms_table(study, frame), protocols_table(study, frame))),
                *value_figures(study, frame),
                *label_figures(study, frame),
            ],
        ),
        Section(
            title="Comparisons",
            items=[comparisons_table(study, frame)] if study.comparisons else (),
        ),
    ]
    sections = [
        _verdicts(study, results.verdicts),
        *(measured if "finished" in set(frame["status"]) else [_nothing_yet(study)]),
        Section(
            title="Tuning",
            items=[trials_table(trials), *_searches(results)]
            if len(trials) and set(trials["status"]) != {"missing"}
            else (),
        ),
        Section(title="Curves", items=_curves(results, series)),
        Section(title="Runs", items=[runs_table(study, made)] if len(made) else ()),
        Section(
            title="How it was made",
            text=[*study.notes, splits_text(frame), *lines],
        ),
    ]
    return Report(
        title=f"{study.name}, scale {study.scale}",
        introduction=study.question,
        circumstances=circumstances(results),
        notices=[*_notices(study, frame), *_doubts(results), *_clock_notices(results.curves)],
        sections=[section for section in sections if section.items or section.text],
    )


def measurement_report(
    measurement: Measurement,
    frame: pd.DataFrame,
    verdicts: list[Verdict],
    lines: Sequence[str],
) -> Report:
    """The report of something counted, timed or checked: its verdicts, its figure or its rows."""
    rows = Table(
        name="rows",
        caption="Every row of the measurement.",
        frame=frame,
        columns=[_plain_column(frame, str(key)) for key in frame.columns],
    )
    return Report(
        title=f"{measurement.name}, scale {measurement.scale}",
        introduction=measurement.question,
        sections=[
            _verdicts(measurement, verdicts),
            Section(
                title="Measured",
                text=_measured_text(measurement, frame),
                items=[_drawing(measurement, frame) or rows] if len(frame) else (),
            ),
            Section(title="How it was made", text=[*measurement.notes, *lines]),
        ],
    )


def _measured_text(measurement: Measurement, frame: pd.DataFrame) -> list[str]:
    if not len(frame):
        return ["It has not been measured yet."]
    return (
        [f"The {len(frame):,} rows behind the figure are in runs.csv."] if measurement.draw else []
    )


def _drawing(measurement: Measurement, frame: pd.DataFrame) -> Drawing | None:
    if measurement.draw is None:
        return None
    canvas = measurement.draw(frame)
    return Drawing(name="figure", title=measurement.question, canvas=canvas)


def _searches(results: StudyResults | KeptResults) -> list[Item]:
    if isinstance(results, KeptResults):
        return [one for one in results.pictures if one.name.startswith("search-")]
    return list(search_figures(results.study, results.trials, results.spaces))


def _curves(results: StudyResults | KeptResults, series: Sequence[Series]) -> list[Item]:
    if isinstance(results, KeptResults):
        return [one for one in results.pictures if not one.name.startswith("search-")]
    return list(curve_figures(series, CURVES, with_seconds=True))


def hardware_of(results: StudyResults | KeptResults) -> list[str]:
    """The machines that made the runs."""
    if isinstance(results, KeptResults):
        return results.made["hardware"]
    return sorted({hardware(manifest) for manifest in results.manifests.values()})


def circumstances(results: StudyResults | KeptResults) -> str:
    """Seeds, n, hardware and protocol, in one sentence each."""
    study, frame = results.study, results.frame
    finished = list(frame["status"]).count("finished")
    seeds = ", ".join(map(str, study.seeds))
    protocols = " and ".join(PROTOCOLS[name] for name in sorted({a.protocol for a in study.arms}))
    machines = hardware_of(results)
    return (
        f"n = {finished} of {len(frame)} runs, seeds {seeds}. Protocol: {protocols}. "
        f"{' / '.join(machines) or 'No machine yet'}."
    )


def splits_text(frame: pd.DataFrame) -> str:
    """Which splits chose, and which one the losses are of."""
    tested = sorted(frame.loc[frame["split"] == "test", "protocol"].unique())
    chosen = "Searches choose on the validation split, with seeds that no test run has."
    others = "Curves, accuracy and perplexity are of the validation split."
    if not tested:
        return (
            f"{chosen} The losses are of the validation split too: not all of these runs have read "
            "a test split."
        )
    which = " and ".join(PROTOCOLS[protocol] for protocol in tested)
    return (
        f"{chosen} The losses of the arms that are {which} are of the test split. Each of their "
        f"runs read it once, at its end, after every search had chosen. {others}"
    )


def _verdicts(experiment: Experiment, verdicts: list[Verdict]) -> Section:
    judged = {verdict.claim for verdict in verdicts}
    text = [
        f"{claim}: no verdict yet; {command(experiment)} makes the runs that it needs."
        for claim in experiment.claims
        if claim not in judged
    ]
    items: list[Banner | Table] = [banner(verdict) for verdict in verdicts]
    judged_by = [verdict for verdict in verdicts if verdict.findings]
    items += [findings_table(verdict, number) for number, verdict in enumerate(judged_by, start=1)]
    return Section(title="Verdict", text=text, items=items)


def _nothing_yet(study: Study) -> Section:
    arms = ", ".join(arm.name for arm in study.arms)
    return Section(
        title="Arms",
        text=["No run has finished yet, so there is nothing to compare.", f"Arms: {arms}."],
    )


def _notices(study: Study, frame: pd.DataFrame) -> list[str]:
    warned: dict[str, list[str]] = {}
    for arm in study.arms:
        for warning in arm_warnings(arm):
            warned.setdefault(warning, []).append(arm.name)
    notices = [f"{shortened(arms)}: {warning}" for warning, arms in warned.items()]
    counts = Counter(frame["status"])
    if missing := counts["missing"]:
        notices.append(f"{missing} of {len(frame)} runs are missing; `{command(study)}` makes them")
    if failed := counts["failed"]:
        notices.append(f"{failed} of {len(frame)} runs failed; the table of runs says why")
    if len(study.seeds) == 1:
        notices.append("One seed only: there are no intervals, and no difference is a finding.")
    return notices + [
        f"{row['arm']}, seed {row['seed']}: {key} is no number"
        for row in frame.to_dict("records")
        for key in study.measures
        if row["status"] == "finished" and not math.isfinite(row.get(key, math.nan))
    ]


def _doubts(results: StudyResults | KeptResults) -> list[str]:
    """What a reader could take these runs for, and should not."""
    frame = results.frame
    apart = 1.0
    notices = []
    if isinstance(results, KeptResults):
        if definition_changed(results.study, results.made["lines"]):
            notices.append(
                "These runs were made for an earlier definition of the study: arms are the same, "
                "but searches had other numbers of trials. They are judged by today's rules."
            )
        if results.pictures:
            notices.append(
                "Figures of curves and searches are those of the first report; their text is in "
                "the words of that time."
            )
    for arm in results.study.arms:
        times = frame.loc[frame["arm"] == arm.name, "steady_seconds"].dropna().tolist()
        apart = max(apart, max(times) / min(times)) if times else apart
    if apart > TIMES_APART:
        notices.append(
            f"Training times of an arm's seeds differ by up to {apart:.1f}×: the machine had other "
            "work, so times do not compare. Losses do not depend on it."
        )
    unknown = [
        arm.name
        for arm in results.study.arms
        if arm.search and math.isnan(regret(frame, arm.name)) and mean(frame, arm.name) > 0
    ]
    if unknown:
        notices.append(
            f"{shortened(unknown)}: the regret of the search was not measured, so intervals hold "
            "the scatter of seeds alone; how well these arms were tuned is outside them."
        )
    if "bigram" in frame:
        poor = [
            arm.name
            for arm in results.study.arms
            if mean(frame, arm.name) >= mean(frame, arm.name, "bigram")
        ]
        if poor:
            notices.append(
                f"{shortened(poor)}: no better than counting which token follows which; such arms "
                "say nothing about attention."
            )
    if followers := [arm.name for arm in results.study.arms if arm.tuned_as]:
        notices.append(
            f"{shortened(followers)}: tuned as another arm, whose regret they share; what their "
            "own optimum would gain is not measured."
        )
    for arm, sides in results.edges.items():
        places = ", ".join(f"{field} at its {side} end" for field, side in sides.items())
        notices.append(f"{arm}: the best trial of its search is at an edge ({places})")
    hashes: dict[str, set[str]] = {}
    for row in frame.to_dict("records"):
        if manifest := results.manifests.get(row["run"]):
            data = results.study.arm(row["arm"]).config.data.cache_key()
            hashes.setdefault(data, set()).add(str(manifest.get("data_hash", "unknown")))
    if any(len(found) > 1 for found in hashes.values()):
        notices.append("Runs of the same data settings were made on different data.")
    return notices


def shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are: a table marks or shows them all."""
    if len(names) <= MANY + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MANY])} and {len(names) - MANY} more arms"


def _clock_notices(curves: Mapping[str, pd.DataFrame]) -> list[str]:
    return [
        f"{Path(path).name}: its clock went backwards, so it is not drawn against seconds"
        for path, rows in curves.items()
        if not clock_runs_forwards(rows)
    ]


def made_of(results: StudyResults, record: Mapping[str, Any]) -> list[str]:
    """How a study's runs and its report were made, a fact a line."""
    return [*_origin(results.study, record), *_runs_origin(results)]


def _origin(experiment: Experiment, record: Mapping[str, Any]) -> list[str]:
    """Command, code, versions, machine."""
    lines = [f"Command: {command(experiment)}"]
    if isinstance(experiment, Study):
        lines.append(f"Definition: {experiment.fingerprint()[:12]}")
    elif git := record.get("git"):
        lines.append(f"Code: {_commit(git)}")
    for name in ("versions", "machine"):
        if facts := record.get(name):
            lines.append(f"{name.title()}: " + ", ".join(_fact(k, v) for k, v in facts.items()))
    return lines


def _runs_origin(results: StudyResults) -> list[str]:
    """The commits and data that the runs themselves name."""
    manifests = results.manifests.values()
    commits = Counter(_commit(manifest["git"]) for manifest in manifests if "git" in manifest)
    data = Counter(str(manifest.get("data_hash", "unknown"))[:12] for manifest in manifests)
    return [
        f"{name} of the runs: " + ", ".join(f"{key} ({count})" for key, count in counts.items())
        for name, counts in (("Code", commits), ("Data", data))
        if counts
    ]


def _commit(git: Mapping[str, Any]) -> str:
    return f"{git['sha'][:12]}{' with local changes' if git['dirty'] else ''}"


def _fact(key: str, value: Any) -> str:
    """A fact of a machine or a version, counted things with their unit behind."""
    if key in ("cores", "threads"):
        return f"{value} {key.removesuffix('s') if value == 1 else key}"
    return f"{key} {value}"


def _plain_column(frame: pd.DataFrame, key: str) -> Column:
    values = frame[key]
    whole = not pd.api.types.is_numeric_dtype(values) or all(
        math.isfinite(value) and value == int(value) for value in values.dropna()
    )
    return Column(key=key, heading=key, digits=0 if whole else 4)
