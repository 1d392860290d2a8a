"""`muonlab theory …`: a short name for those measurements that check the papers' theorems."""

from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

from muonlab.cli import study
from muonlab.cli.options import RESULTS_DIR, STUDIES_DIR, CacheDir, ResultsDir, Scale, StudiesDir

application = SubcommandApp()
Names = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="NAME",
        help="checks, such as rate; `muonlab theory list` lists all",
        help_behavior_hint="(default: all)",
    ),
]
AtScale = Annotated[
    Scale, tyro.conf.arg(help="nano takes minutes; small has more seeds and takes up to an hour")
]


@application.command(name="list")
def list_checks(*, scale: AtScale = "nano") -> None:
    """List every check: its question and its claim."""
    study.list_studies(_studies(()), scale=scale)


@application.command(name="run")
def run_checks(
    names: Names = (),
    /,
    *,
    scale: AtScale = "nano",
    runs_dir: StudiesDir = STUDIES_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Run checks, and keep the measured rows and the verdict of each.

    Ctrl-C loses only the check that is running.
    """
    study.run(_studies(names), scale=scale, runs_dir=runs_dir, cache_dir=cache_dir)


@application.command(name="report")
def write_reports(
    names: Names = (),
    /,
    *,
    scale: AtScale = "nano",
    runs_dir: StudiesDir = STUDIES_DIR,
    results_dir: ResultsDir = RESULTS_DIR,
) -> None:
    """Write a report of each check: its verdict, the numbers behind it, a figure, all rows."""
    study.report(_studies(names), scale=scale, runs_dir=runs_dir, results_dir=results_dir)


def _studies(names: tuple[str, ...]) -> tuple[str, ...]:
    """The studies behind these checks; all of them where none is named."""
    from muonlab.papers.theory import CHECKS

    return tuple(f"theory-{name.removeprefix('theory-')}" for name in names) or tuple(CHECKS)
