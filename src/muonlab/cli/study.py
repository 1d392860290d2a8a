"""`muonlab study …`: list, show, run and report experiments: the papers', and your own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.extras import SubcommandApp

from muonlab.cli.experiments import chosen, print_cost
from muonlab.cli.optimizer_study import compare_with_baselines
from muonlab.cli.options import (
    RESULTS_DIR,
    STUDIES_DIR,
    CacheDir,
    DryRun,
    ResultsDir,
    StudiesDir,
    Threads,
    Workers,
)
from muonlab.errors import UserError

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.lab.experiment import Arm, Experiment

application = SubcommandApp()
application.command(name="optimizer")(compare_with_baselines)
StudyName = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="STUDY", help="a study, or a file that defines one"),
]
StudyNames = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="STUDY",
        help="studies, or files that define them; `muonlab study list` lists all",
        help_behavior_hint="(default: all built-in studies)",
    ),
]
AtScale = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="SCALE",
        help="of a built-in study: nano takes minutes, small hours, paper a GPU",
        help_behavior_hint="(default: small, or the scale of a file's study)",
    ),
]
STATES = ("finished", "failed", "running", "interrupted", "to do")


@application.command(name="list")
def list_studies(studies: StudyNames = (), /, *, scale: AtScale = None) -> None:
    """List every study: its question, its runs, its claims."""
    table = Table("study", "runs", "claims", "question", box=None, pad_edge=False)
    for each in chosen(studies, scale):
        table.add_row(each.name, _size(each), ", ".join(each.claims), each.question)
    Console().print(table)


@application.command
def run(
    studies: StudyNames,
    /,
    *,
    scale: AtScale = None,
    workers: Workers = None,
    threads: Threads = 1,
    executor: Annotated[
        Literal["local", "ray"],
        tyro.conf.arg(help="make runs in processes on this machine, or as Ray tasks"),
    ] = "local",
    dry_run: DryRun = False,
    retry_failed: Annotated[
        bool, tyro.conf.arg(help="make runs that ended in an error once more")
    ] = False,
    keep_checkpoints: Annotated[
        bool, tyro.conf.arg(help="keep the checkpoints of finished runs, too")
    ] = False,
    runs_dir: StudiesDir = STUDIES_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Make the missing runs of studies, and resume interrupted ones.

    After an interruption, give the same command again. Once all runs are finished it does nothing.
    Ctrl-C writes checkpoints and ends with exit code 130. A study's hyper-parameters are fixed.
    """
    from muonlab.lab.engine import Resources, run_measurement, run_study
    from muonlab.lab.experiment import Measurement

    resources = Resources(workers=workers, threads=threads, executor=executor, cache_dir=cache_dir)
    for experiment in chosen(studies, scale):
        if dry_run:
            print_cost(experiment, runs_dir, resources)
        elif isinstance(experiment, Measurement):
            run_measurement(experiment, runs_dir, cache_dir=cache_dir)
        else:
            run_study(
                experiment,
                runs_dir,
                resources,
                retry_failed=retry_failed,
                keep_checkpoints=keep_checkpoints,
            )


@application.command
def status(
    studies: StudyNames = (), /, *, scale: AtScale = None, runs_dir: StudiesDir = STUDIES_DIR
) -> None:
    """Print how many runs of each study are finished, and which values its searches chose."""
    from muonlab.lab.record import status as study_status

    table = Table("study", *STATES, "tuned", box=None, pad_edge=False)
    for experiment in chosen(studies, scale):
        found = study_status(experiment, runs_dir)
        counts = [str(found.counts.get(state) or "") for state in STATES]
        tuned = [f"{arm}: {_values(values)}" for arm, values in found.tuned.items()]
        if found.changed:
            tuned.append("the definition has changed since its runs were made")
        table.add_row(experiment.name, *counts, "\n".join(tuned))
    Console().print(table)


@application.command
def report(
    studies: StudyNames = (),
    /,
    *,
    scale: AtScale = None,
    runs_dir: StudiesDir = STUDIES_DIR,
    results_dir: ResultsDir = RESULTS_DIR,
    again: Annotated[
        bool, tyro.conf.arg(help="make kept reports anew, by today's rules, from their own rows")
    ] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write the reports of studies: a page, Markdown with pictures, CSV, verdicts.

    A report can be written at any time: it marks missing and failed runs. Without names, it covers
    all studies that have runs. It never overwrites a report that was made from more runs.

    With --again it needs no runs: it judges the rows that a report has kept by today's rules, and
    writes the report again. Pictures of curves and searches stay as they are.
    """
    from muonlab.lab.plan import folder, folder_name
    from muonlab.report.study import rewrite_study, write_study

    experiments = chosen(studies, scale)
    if not studies:
        kept = results_dir if again else runs_dir
        experiments = [each for each in experiments if folder(each, kept).is_dir()]
    if not experiments:
        raise UserError(
            f"no study at scale {scale or 'small'} has a report below {results_dir}"
            if again
            else f"no study at scale {scale or 'small'} has runs below {runs_dir}; "
            f"`muonlab study run STUDY --scale {scale or 'small'}` makes them"
        )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    refusals: list[str] = []
    for experiment in experiments:
        try:
            directory = results_dir / folder_name(experiment)
            if again:
                page = rewrite_study(experiment, directory, cache_dir)
            else:
                page = write_study(experiment, runs_dir, directory)
            console.print(f"wrote {page}")
        except UserError as refusal:
            refusals.append(str(refusal))
    if refusals:
        raise UserError("; ".join(refusals))


@application.command
def show(study: StudyName, /, *, scale: AtScale = None) -> None:
    """Show a study: question, claims, seeds, notes, and how each arm differs from the first."""
    from muonlab.lab.experiment import Study

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for experiment in chosen((study,), scale):
        console.print(f"{experiment.name} at scale {experiment.scale}: {experiment.question}")
        console.print(f"claims: {', '.join(experiment.claims) or 'none'}")
        if isinstance(experiment, Study):
            console.print(f"seeds: {', '.join(map(str, experiment.seeds))}")
            first = experiment.arms[0]
            for arm in experiment.arms:
                console.print(f"arm {arm.name} ({arm.protocol}){_tuning(arm)}")
                for line in differences(first.config, arm.config):
                    console.print(f"    {line}")
        for note in experiment.notes:
            console.print(f"note: {note}")


def differences(base: "RunConfig", other: "RunConfig") -> Iterator[str]:
    """Fields in which two configs differ, as ``field: a → b``, without names and seeds."""
    from muonlab.config import to_dict

    one, two = (dict(_flat(to_dict(config))) for config in (base, other))
    for field in sorted(one.keys() | two.keys()):
        before, after = one.get(field, "absent"), two.get(field, "absent")
        if before != after and field not in ("name", "variant", "seed"):
            yield f"{field}: {before} → {after}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _tuning(arm: "Arm") -> str:
    if arm.tuned_as:
        return f", tuned as {arm.tuned_as}"
    if arm.search is None:
        return ""
    spaces = (f"{field} in [{low:g}, {high:g}]" for field, (low, high) in arm.search.space.items())
    repeats = arm.search.repeats
    again = f", the best {arm.search.finalists} again with {repeats} more seeds" if repeats else ""
    return f", {arm.search.total_trials} trials of {', '.join(spaces)}{again}"


def _values(values: Any) -> str:
    if values is None:
        return "search not finished"
    return ", ".join(f"{field} {value:g}" for field, value in values.items())


def _size(experiment: "Experiment") -> str:
    from muonlab.lab.experiment import Measurement

    if isinstance(experiment, Measurement):
        return "measured"
    trials = sum(arm.search.total_runs for arm in experiment.arms if arm.search)
    tests = len(experiment.arms) * len(experiment.seeds)
    return f"{tests} + {trials} trials" if trials else str(tests)
