"""`muonlab report | compare`: runs as a table and as a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.cli.options import RUNS_DIR
from muonlab.errors import UserError

RunPaths = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="RUN", help="run directories, or directories of runs", help_behavior_hint=""
    ),
]
Place = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="DIR",
        help="where to write the page",
        help_behavior_hint=f"(default: RUN/report, or {RUNS_DIR / 'comparison'} for several)",
    ),
]
Title = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="TEXT", help="the page's heading", help_behavior_hint="(default: the runs' names)"
    ),
]
Json = Annotated[bool, tyro.conf.arg(help="print the table as JSON, one record for each run")]
MOST_COLUMNS = 4  # more runs than these are printed one below the other


def report(runs: RunPaths, /, *, to: Place = None, title: Title = None, json: Json = False) -> None:
    """Print runs as a table, and write a page with their curves. One run is enough.

    Runs that differ only in their seed are averaged. A run that has not finished is shown up to its
    last step, and is part of no average.
    """
    _show(_run_paths(runs), to, title, as_json=json)


def compare(
    runs: RunPaths, /, *, to: Place = None, title: Title = None, json: Json = False
) -> None:
    """Compare two or more runs: print a table, and write a page with their curves.

    It does the same as `muonlab report`, which also takes a single run.
    """
    paths = _run_paths(runs)
    if len(paths) < 2:
        raise UserError(
            f"compare got {len(paths)} run; it needs two or more, `muonlab report` takes one"
        )
    _show(paths, to, title, as_json=json)


def print_table(console: Console, paths: Sequence[Path]) -> None:
    """Print the final figures of runs: few runs side by side, many one below the other."""
    from muonlab.report import comparison_table

    frame = comparison_table(paths)
    if len(frame) <= MOST_COLUMNS:  # a row for each figure fits 80 columns
        frame = frame.set_index("Arm").T.reset_index()
        frame.columns = ["", *frame.columns[1:]]
    table = Table(*map(str, frame.columns), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)


def _show(paths: Sequence[Path], to: Path | None, title: str | None, *, as_json: bool) -> None:
    from muonlab.report import comparison_records, write_comparison

    place = to or (paths[0] / "report" if len(paths) == 1 else RUNS_DIR / "comparison")
    page = write_comparison(paths, place, title=title, introduction="", samples={})
    if as_json:
        print(json.dumps({"page": str(page), "runs": comparison_records(paths)}, indent=2))
        return
    print_table(Console(markup=False, highlight=False), paths)
    Console(markup=False, highlight=False, soft_wrap=True).print(f"\nThe page: {page}")


def _run_paths(runs: Sequence[Path]) -> list[Path]:
    """The runs that were named, each once; raises UserError for what is none and holds none."""
    from muonlab.report import read_run
    from muonlab.runs import find_runs

    if not runs:
        raise UserError("no run was named; `muonlab runs` lists them")
    paths: list[Path] = []
    for path in runs:
        if (path / "config.json").exists():
            read_run(path)  # raises the line that says what is wrong with it
            paths.append(path)
        elif found := [run.path for run in find_runs(path)]:
            paths += found
        else:
            raise UserError(f"{path} is no run directory and holds none; `muonlab runs` lists them")
    return list(dict.fromkeys(paths))
