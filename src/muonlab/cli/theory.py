"""`muonlab theory …`: the papers' theorems as experiments, run, kept and reported."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.extras import SubcommandApp

from muonlab.cli.options import CacheDir
from muonlab.errors import UserError

application = SubcommandApp()
OutcomesDir = Annotated[Path, tyro.conf.arg(help="where outcomes are kept")]
OUTCOMES_DIR = Path("runs/theory")


@application.command(name="list")
def list_checks(*, out: OutcomesDir = OUTCOMES_DIR) -> None:
    """Every check: its claim, and the verdict where it was run."""
    from muonlab.theory.catalogue import CHECKS
    from muonlab.theory.record import load_outcomes

    verdicts = {found["name"]: found["verdict"] for found in load_outcomes(out)}
    table = Table("check", "claim", "verdict", "what the paper says", box=None, pad_edge=False)
    for check in CHECKS.values():
        table.add_row(check.name, check.claim, verdicts.get(check.name, "not run"), check.sentence)
    Console().print(table)


@application.command(name="run")
def run_checks(
    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="NAME", help="checks to run; `muonlab theory list` lists all"),
    ] = (),
    *,
    all: Annotated[bool, tyro.conf.arg(help="run every check")] = False,  # noqa: A002
    thorough: Annotated[bool, tyro.conf.arg(help="more seeds and sizes; up to an hour")] = False,
    out: OutcomesDir = OUTCOMES_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Run checks and keep data, figure and verdict of each; Ctrl-C loses the current one only."""
    from muonlab.theory.catalogue import CHECKS, find_check
    from muonlab.theory.check import Context
    from muonlab.theory.record import run_check

    if bool(names) == all:
        raise UserError("name the checks to run, or give --all, and not both")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    bar_console = Console(stderr=True)
    for check in [find_check(name) for name in (CHECKS if all else dict.fromkeys(names))]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(
            *columns, console=bar_console, transient=True, disable=not bar_console.is_terminal
        ) as bar:
            task = bar.add_task(check.name, total=1.0)
            context = Context(
                cache_dir=cache_dir,
                advance=lambda share, t=task, b=bar: b.update(t, completed=share),
            )
            found = run_check(check, out, context, thorough=thorough)
        console.print(f"{check.name}: {found['verdict']}. {found['sentence']}")
        console.print(f"  decided by: {found['reason']}\n  kept in {out / check.name}")


@application.command(name="report")
def write_report(*, out: OutcomesDir = OUTCOMES_DIR) -> None:
    """Write what all checks found to one Markdown page, with their figures."""
    from muonlab.runs import write_whole
    from muonlab.theory.record import load_outcomes, report

    outcomes = load_outcomes(out)
    if not outcomes:
        raise UserError(f"no outcomes below {out}; `muonlab theory run --all` makes them")
    write_whole(out / "report.md", report(outcomes))
    print(f"{len(outcomes)} checks reported in {out / 'report.md'}")
