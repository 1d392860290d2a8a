"""`muonlab claims`: what the papers claim, and what our runs say of it."""

import dataclasses
import json as json_format
import warnings
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.cli.options import RESULTS_DIR, STUDIES_DIR, ResultsDir, StudiesDir

if TYPE_CHECKING:
    from muonlab.report.claims import Entry


def list_claims(
    *,
    report: Annotated[
        bool, tyro.conf.arg(help="also write the list as a page, into RESULTS-DIR/claims")
    ] = False,
    json: Annotated[bool, tyro.conf.arg(help="print the list as JSON instead")] = False,
    runs_dir: StudiesDir = STUDIES_DIR,
    results_dir: ResultsDir = RESULTS_DIR,
) -> None:
    """List the papers' claims: the paper's value, ours, the verdict, the runs behind it.

    Where there is no verdict yet, it names the command that makes the missing runs.
    """
    from muonlab.report.claims import ledger, write_ledger

    if not results_dir.is_dir():
        warnings.warn(
            f"there is no directory {str(results_dir)!r}, so only the verdicts of your own runs "
            "count; the committed ones are in a clone of the repository (--results-dir)",
            stacklevel=2,
        )
    entries = ledger(runs_dir, results_dir)
    if json:
        print(json_format.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
    else:
        _print_table(entries)
    if report:
        written = f"wrote {write_ledger(entries, results_dir)}"
        Console(stderr=json, markup=False, highlight=False, soft_wrap=True).print(written)


def _print_table(entries: "list[Entry]") -> None:
    from muonlab.report.verdicts import signed

    table = Table("claim", "paper, ours, why", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for entry in entries:
        ours = [f"ours: {entry.ours}"] if entry.ours else []
        said = [entry.claim.text, f"paper: {entry.claim.value}", *ours, entry.sentence]
        verdict = signed(entry.verdict) if entry.verdict else "– no verdict yet"
        source = [entry.source] if entry.source else []
        table.add_row(f"{entry.claim.id}\n{verdict}", "\n".join([*said, *source]), end_section=True)
    Console(markup=False, highlight=False).print(table)
