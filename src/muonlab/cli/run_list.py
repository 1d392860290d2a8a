"""`muonlab runs`: which runs there are and how far they are, once or until Ctrl-C."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from muonlab.cli.options import RUNS_DIR, RunsDir

if TYPE_CHECKING:
    from muonlab.runs import RunDirectory

WATCH_SECONDS = 2.0
LINE_WIDTH = 10_000  # no path is cut or broken: a terminal wraps it, a pipe has no width


def list_runs(
    runs_dir: Annotated[RunsDir, tyro.conf.Positional] = RUNS_DIR,
    *,
    watch: Annotated[
        bool, tyro.conf.arg(help="update the table every 2 seconds, until Ctrl-C")
    ] = False,
    json_output: Annotated[
        bool, tyro.conf.arg(name="json", help="print one JSON object for each run, for programs")
    ] = False,
) -> None:
    """List runs with their status: finished, running, interrupted, started or damaged.

    Each run is one line, so that its path can be copied.
    """
    if json_output:
        for facts in facts_of_runs(runs_dir):
            print(json.dumps(facts))
    elif watch:
        _watch(runs_dir)
    else:
        Console(width=LINE_WIDTH, highlight=False).print(_listing(runs_dir))


def facts_of_runs(runs_dir: Path) -> Iterator[dict[str, Any]]:
    """Every run below a directory as plain data; a damaged one says what is wrong.

    Losses are in nats a token, speeds in tokens a second.
    """
    from muonlab.runs import RunError, find_runs

    for run in find_runs(runs_dir):
        try:
            yield _facts(run)
        except RunError as error:
            yield {"run": str(run.path), "status": "damaged", "problem": str(error)}


def _facts(run: "RunDirectory") -> dict[str, Any]:
    config, rows = run.config(), run.metrics()
    return {
        "run": str(run.path),
        "status": run.status(),
        "step": rows[-1]["step"] if rows else 0,
        "steps": config.train.steps,
        "train_loss": _latest(rows, "train/loss"),
        "val_loss": _latest(rows, "val/loss"),
        "tokens_per_second": _latest(rows, "train/tokens_per_second"),
        "seed": config.seed,
        "fingerprint": config.fingerprint(),
        "warnings": run.manifest()["warnings"],
    }


def _latest(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def _listing(runs_dir: Path) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("status", no_wrap=True)
    for heading in ("steps", "train loss", "val loss (nats/token)", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run", overflow="fold")  # last, so that it may be long
    notes: list[Text] = []
    for facts in facts_of_runs(runs_dir):
        path = facts["run"]
        if "problem" in facts:
            table.add_row("damaged", "", "", "", "", Text(path))
            notes.append(Text(facts["problem"], style="bold red"))
            continue
        table.add_row(
            facts["status"],
            f"{facts['step']}/{facts['steps']}",
            _figure(facts["train_loss"], ".4f"),
            _figure(facts["val_loss"], ".4f"),
            _figure(facts["tokens_per_second"], ",.0f"),
            Text(path),
        )
        notes += [Text(f"{path}: warning: {text}", "bold red") for text in facts["warnings"]]
    return Group(table, *notes) if table.rows else Text(f"no runs below {runs_dir}")


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _watch(runs_dir: Path) -> None:
    from rich.live import Live

    try:
        with Live(_listing(runs_dir), auto_refresh=False, screen=sys.stdout.isatty()) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(_listing(runs_dir), refresh=True)
    except KeyboardInterrupt:
        pass  # is how a watch ends
