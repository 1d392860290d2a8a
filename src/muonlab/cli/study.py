"""`muonlab study …`: what the papers' experiments ask, making their runs, how far they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.extras import SubcommandApp

from muonlab.cli.options import RESULTS_DIR, STUDIES_DIR, CacheDir, Scale
from muonlab.errors import UserError
from muonlab.spelling import did_you_mean

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.lab.engine import Resources
    from muonlab.lab.experiment import Arm, Experiment

application = SubcommandApp()
StudyName = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="STUDY", help="its name; `muonlab study list` lists all"),
]
StudyNames = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="STUDY", help="their names", help_behavior_hint="(default: all)"),
]
AtScale = Annotated[Scale, tyro.conf.arg(help="nano: minutes; small: hours; paper: a GPU")]
StudiesDir = Annotated[Path, tyro.conf.arg(help="where the folders of studies are kept")]
STATES = ("finished", "failed", "running", "interrupted", "to do")


@application.command(name="list")
def list_studies(*, scale: AtScale = "small") -> None:
    """List every study: its question, its runs, its claims."""
    from muonlab.papers import EXPERIMENTS

    print_list(tuple(EXPERIMENTS), scale)


def print_list(names: tuple[str, ...], scale: Scale) -> None:
    """A row an experiment."""
    table = Table("study", "runs", "claims", "question", box=None, pad_edge=False)
    for name in names:
        experiment = find(name, scale)
        table.add_row(name, _size(experiment), ", ".join(experiment.claims), experiment.question)
    Console().print(table)


@application.command
def run(
    studies: StudyNames,
    /,
    *,
    scale: AtScale = "small",
    workers: Annotated[
        int | None,
        tyro.conf.arg(
            help="runs side by side",
            help_behavior_hint="(default: usable cores divided by threads)",
        ),
    ] = None,
    threads: Annotated[int, tyro.conf.arg(help="threads of each run")] = 1,
    executor: Annotated[
        Literal["local", "ray"], tyro.conf.arg(help="processes here, or Ray tasks")
    ] = "local",
    dry_run: Annotated[bool, tyro.conf.arg(help="only say what the missing runs cost")] = False,
    retry_failed: Annotated[
        bool, tyro.conf.arg(help="make runs again that ended in an error")
    ] = False,
    keep_checkpoints: Annotated[bool, tyro.conf.arg(help="of finished runs too")] = False,
    runs_dir: StudiesDir = STUDIES_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Make the runs of studies that are missing; go on with those that were cut.

    The same command again goes on after any interruption, and does nothing once all is done.
    Ctrl-C writes checkpoints and ends with exit code 130. A study takes no hyper-parameters.
    """
    from muonlab.lab.engine import Resources, run_measurement, run_study
    from muonlab.lab.experiment import Measurement
    from muonlab.papers import EXPERIMENTS

    resources = Resources(workers=workers, threads=threads, executor=executor, cache_dir=cache_dir)
    for experiment in [find(name, scale) for name in studies or EXPERIMENTS]:
        if dry_run:
            _print_cost(experiment, runs_dir, resources)
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
    studies: StudyNames = (), /, *, scale: AtScale = "small", runs_dir: StudiesDir = STUDIES_DIR
) -> None:
    """Say how far studies are, and which values their searches chose."""
    from muonlab.lab.record import status as study_status
    from muonlab.papers import EXPERIMENTS

    table = Table("study", *STATES, "tuned", box=None, pad_edge=False)
    for name in studies or EXPERIMENTS:
        found = study_status(find(name, scale), runs_dir)
        counts = [str(found.counts.get(state) or "") for state in STATES]
        tuned = [f"{arm}: {_values(values)}" for arm, values in found.tuned.items()]
        if found.changed:
            tuned.append("the definition has changed since its runs were made")
        table.add_row(name, *counts, "\n".join(tuned))
    Console().print(table)


@application.command
def report(
    studies: StudyNames = (),
    /,
    *,
    scale: AtScale = "small",
    runs_dir: StudiesDir = STUDIES_DIR,
    results_dir: Annotated[Path, tyro.conf.arg(help="where reports are kept")] = RESULTS_DIR,
) -> None:
    """Write the reports of studies: a page, Markdown with pictures, CSV, verdicts.

    A report can be written at any time: runs that are missing or failed are shown as such. Without
    names: the studies that have a folder of runs. A report of more runs is never overwritten.
    """
    from muonlab.lab.plan import folder, folder_name
    from muonlab.papers import EXPERIMENTS
    from muonlab.report.study import write_study

    experiments = [find(name, scale) for name in studies or EXPERIMENTS]
    if not studies:
        experiments = [each for each in experiments if folder(each, runs_dir).is_dir()]
    if not experiments:
        raise UserError(
            f"no study at scale {scale} has runs below {runs_dir}; "
            f"`muonlab study run STUDY --scale {scale}` makes them"
        )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    refusals: list[str] = []
    for experiment in experiments:
        try:
            page = write_study(experiment, runs_dir, results_dir / folder_name(experiment))
            console.print(f"wrote {page}")
        except UserError as refusal:
            refusals.append(str(refusal))
    if refusals:
        raise UserError("; ".join(refusals))


@application.command
def show(study: StudyName, /, *, scale: AtScale = "small") -> None:
    """Show a study: question, arms as changes from the first, seeds, searches, claims, notes."""
    from muonlab.lab.experiment import Study

    experiment = find(study, scale)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{experiment.name} at scale {scale}: {experiment.question}")
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


def find(name: str, scale: Scale) -> "Experiment":
    """The experiment of that name; raises UserError with the legal ones."""
    from muonlab.papers import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise UserError(
            f"study {name!r} is unknown; {did_you_mean(name, EXPERIMENTS)}"
            f"legal: {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name](scale)


def differences(base: "RunConfig", other: "RunConfig") -> Iterator[str]:
    """Fields in which the configs differ, as ``field: a → b``; names and seeds apart."""
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
    return f", {arm.search.total_trials} trials of {', '.join(spaces)}"


def _values(values: Any) -> str:
    if values is None:
        return "search under way"
    return ", ".join(f"{field} {value:g}" for field, value in values.items())


def _size(experiment: "Experiment") -> str:
    from muonlab.lab.experiment import Measurement

    if isinstance(experiment, Measurement):
        return "measured"
    trials = sum(arm.search.total_trials for arm in experiment.arms if arm.search)
    tests = len(experiment.arms) * len(experiment.seeds)
    return f"{tests} + {trials} trials" if trials else str(tests)


def _print_cost(experiment: "Experiment", root: Path, resources: "Resources") -> None:
    import torch

    from muonlab.lab.cost import estimate
    from muonlab.lab.executors import default_workers
    from muonlab.lab.experiment import Measurement
    from muonlab.lab.plan import Plan

    console = Console(markup=False, highlight=False, soft_wrap=True)
    if isinstance(experiment, Measurement):
        console.print(f"{experiment.name}: a measurement, no runs")
        return
    torch.set_num_threads(resources.threads)
    plan = Plan(experiment, root)
    configs = [job.config for job in plan.to_do()]
    configs += [arm.config for arm in plan.unnamed()]
    cost = estimate(configs, resources.cache_dir)
    workers = resources.workers or default_workers(resources.threads)
    hours = cost.seconds / 3600 / workers
    console.print(
        f"{experiment.name} at scale {experiment.scale}: {cost.runs} runs to make, "
        f"{cost.flops:.2e} FLOP, {hours:.2f} hours here with {workers} × {resources.threads} "
        f"threads, at most {workers * cost.checkpoint_bytes / 1e6:,.0f} MB under way, "
        f"{cost.kept_bytes / 1e6:,.1f} MB kept"
    )
    for note in cost.notes:
        console.print(f"note: {note}")
