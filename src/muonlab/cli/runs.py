"""`muonlab train | resume | runs`: making runs and finding them again."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.cli.options import (
    RUNS_DIR,
    CacheDir,
    Overrides,
    RecipeName,
    RunPath,
    RunsDir,
)

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.runs import RunDirectory


def train_recipe(
    recipe_name: RecipeName,
    overrides: Overrides = (),
    *,
    data: Annotated[
        Path | None, tyro.conf.arg(help="train on your own text: a file or a directory")
    ] = None,
    runs_dir: RunsDir = RUNS_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Train a recipe, with any field of it changed on the command line.

    Ctrl-C writes a checkpoint and ends with exit code 130; `muonlab resume` goes on from there.
    """
    from muonlab.config import override
    from muonlab.recipes import recipe
    from muonlab.runs import RunDirectory, RunError

    config = with_text(override(recipe(recipe_name), list(overrides)), data)
    run = RunDirectory.place(runs_dir, config)
    if run.exists():
        raise RunError(
            f"{run.path} holds this run already, {run.status()}; "
            f"`muonlab resume {run.path}` continues it, seed=N starts another"
        )
    execute(config, run, cache_dir)


def resume(run_path: RunPath, *, cache_dir: CacheDir = None) -> None:
    """Continue an interrupted run from its newest checkpoint, bit for bit."""
    from muonlab.runs import RunDirectory, RunError

    run = RunDirectory(run_path)
    config = run.config()
    if run.status() == "finished":
        raise RunError(f"{run_path} is finished: {run.summary()['steps']} steps")
    execute(config, run, cache_dir)


def list_runs(runs_dir: Annotated[RunsDir, tyro.conf.Positional] = RUNS_DIR) -> None:
    """List runs with their status: finished, running, interrupted, started or damaged."""
    from muonlab.runs import RunError, find_runs

    console = Console()
    table = Table("run", "status", "steps", "val loss", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    notes: list[str] = []
    for run in find_runs(runs_dir):
        try:
            rows = run.metrics()
            losses = [row["val/loss"] for row in rows if row.get("val/loss") is not None]
            done = rows[-1]["step"] if rows else 0
            cells = (
                run.status(),
                f"{done}/{run.config().train.steps}",
                f"{losses[-1]:.4f}" if losses else "",
            )
            notes += [f"{run.path}: warning: {text}" for text in run.manifest()["warnings"]]
        except RunError as error:
            cells = ("damaged", "", "")
            notes.append(str(error))
        table.add_row(str(run.path), *cells)
    if not table.rows:
        console.print(f"no runs below {runs_dir}", markup=False)
        return
    console.print(table)
    for note in notes:
        console.print(note, style="bold red", markup=False, soft_wrap=True)


def with_text(config: "RunConfig", path: Path | None) -> "RunConfig":
    """The config with the whole of a local text as its corpus, found from any directory later."""
    from muonlab.data import LocalConfig

    if path is None:
        return config
    data = dataclasses.replace(
        config.data, source=LocalConfig(path=path.absolute()), max_documents=None
    )
    return dataclasses.replace(config, data=data)


def execute(config: "RunConfig", run: "RunDirectory", cache_dir: Path | None) -> None:
    """Train with a progress bar; say where, and how it ended."""
    from muonlab.train import train

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for warning in (*config.model.attention.warnings, *config.data.split.warnings):
        console.print(f"warning: {warning}", style="bold red")
    data = config.data.prepare(cache_dir)
    console.print(f"training in {run.path}")
    summary = train(config, run, data)
    console.print(
        f"{run.path}: validation loss {summary['val/loss']:.4f} nats/token, "
        f"{summary['val/bits_per_byte']:.4f} bits/byte, accuracy {summary['val/accuracy']:.1%}, "
        f"{summary['tokens_per_second']:,.0f} tokens/s, {summary['train_seconds']:.1f} s"
    )
