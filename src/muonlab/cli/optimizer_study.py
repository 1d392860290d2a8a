"""`muonlab study optimizer`: your optimizer against tuned baselines, from search to page."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from muonlab.cli.experiments import print_cost
from muonlab.cli.options import (
    RESULTS_DIR,
    STUDIES_DIR,
    CacheDir,
    DryRun,
    Overrides,
    StudiesDir,
    Threads,
    Workers,
)
from muonlab.errors import UserError

if TYPE_CHECKING:
    from muonlab.lab.experiment import Study


def compare_with_baselines(
    factory: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="FACTORY",
            help="package.module:make or path/to/file.py:make; make(model, **options) returns a "
            "torch.optim.Optimizer (an optimizer's class serves as well)",
        ),
    ],
    overrides: Overrides = (),
    *,
    space: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="OPTION=LOW..HIGH",
            help="an option to tune and its range, such as lr=1e-4..1e-2; give it once for each "
            "option",
            help_behavior_hint="",
        ),
    ],
    against: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="BASELINE", help="adamw, muon, or sgd")
    ] = ("adamw", "muon", "sgd"),
    scale: Annotated[
        str, tyro.conf.arg(metavar="SCALE", help="nano takes minutes, small hours")
    ] = "nano",
    seeds: Annotated[int, tyro.conf.arg(help="runs of each arm, 2 or more")] = 5,
    workers: Workers = None,
    threads: Threads = 1,
    dry_run: DryRun = False,
    runs_dir: StudiesDir = STUDIES_DIR,
    results_dir: Annotated[
        Path, tyro.conf.arg(help="where reports are kept, and finished baselines are looked for")
    ] = RESULTS_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Tune your optimizer, train it on several seeds, and compare it with tuned baselines.

    It prints how many of a baseline's FLOPs, tokens and seconds yours needs to reach the same loss,
    and writes a page. FIELD=VALUE changes optimizer.options.… or learning_rate.… of your runs.
    The same command again goes on after an interruption.
    """
    from muonlab.lab.engine import Resources, run_study
    from muonlab.lab.plan import folder_name
    from muonlab.lab.results import StudyResults
    from muonlab.report.study import write_study

    study = _study(factory, overrides, space, against, scale, seeds, results_dir)
    resources = Resources(workers=workers, threads=threads, cache_dir=cache_dir)
    if dry_run:
        print_cost(study, runs_dir, resources)
        return
    run_study(study, runs_dir, resources)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for verdict in StudyResults(study, runs_dir).verdicts:
        console.print(f"{verdict.claim}: {verdict.sentence}")
    page = write_study(study, runs_dir, results_dir / folder_name(study))
    console.print(f"wrote {page}")


def _study(
    factory: str,
    overrides: tuple[str, ...],
    space: tuple[str, ...],
    against: tuple[str, ...],
    scale: str,
    seeds: int,
    results_dir: Path,
) -> "Study":
    from muonlab.config import parsed
    from muonlab.lab.compare import compare_optimizer

    if seeds < 2:
        raise UserError(f"--seeds is {seeds}; a comparison needs 2 or more")
    study = compare_optimizer(
        factory,
        space=dict(map(_range, space)),
        against=against,
        scale=scale,
        changes=dict(map(parsed, overrides)),
        seeds=seeds,
        results=results_dir,
    )
    words = ["muonlab study optimizer", factory, *overrides]
    words += [f"--space {text}" for text in space]
    words += [f"--against {' '.join(against)}", f"--scale {scale}", f"--seeds {seeds}"]
    return dataclasses.replace(study, command=" ".join(words))


def _range(text: str) -> tuple[str, tuple[float, float]]:
    """``lr=1e-4..1e-2`` as an option and its range."""
    option, _, ends = text.partition("=")
    low, _, high = ends.partition("..")
    try:
        return option, (float(low), float(high))
    except ValueError:
        raise UserError(
            f"--space {text!r} is no range; write OPTION=LOW..HIGH, such as lr=1e-4..1e-2"
        ) from None
