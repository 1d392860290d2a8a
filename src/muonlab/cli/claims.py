"""`muonlab claims`: what the papers claim, and what our runs say of it."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.report.claims import RESULTS, ledger, ledger_table, write_ledger
from muonlab.study.plan import ROOT


def list_claims(
    *,
    report: Annotated[
        bool, tyro.conf.arg(help="also write the page of all claims, below the results")
    ] = False,
    runs_dir: Annotated[Path, tyro.conf.arg(help="where the folders of studies are kept")] = ROOT,
    results_dir: Annotated[Path, tyro.conf.arg(help="where committed reports are kept")] = RESULTS,
) -> None:
    """List every claim: the paper's value, ours, the verdict, the runs behind it.

    A claim without a verdict says which command makes the runs that it needs.
    """
    entries = ledger(runs_dir, results_dir)
    found = ledger_table(entries)
    table = Table(box=None, pad_edge=False)
    for column in found.columns:
        table.add_column(column.heading, overflow="fold", no_wrap=not column.wraps)
    for row in found.rows():
        table.add_row(*(cell.text for cell in row))
    console = Console(markup=False, highlight=False)
    console.print(table)
    if report:
        console.print(f"wrote {write_ledger(entries, results_dir / 'claims')}", soft_wrap=True)
