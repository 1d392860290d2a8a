"""From the names on a command line to experiments, built-in or of a user's file, and their cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from muonlab.errors import UserError
from muonlab.spelling import did_you_mean

if TYPE_CHECKING:
    from muonlab.lab.engine import Resources
    from muonlab.lab.experiment import Experiment


def chosen(names: Sequence[str], scale: str | None) -> "list[Experiment]":
    """The experiments of these names and files, all built-in ones without; raises UserError."""
    from muonlab.papers import EXPERIMENTS

    found: list[Experiment] = []
    for name in names or EXPERIMENTS:
        found += _own(Path(name), scale) if name.endswith(".py") else [_built_in(name, scale)]
    return found


def print_cost(experiment: "Experiment", root: Path, resources: "Resources") -> None:
    """Print what the missing runs of an experiment would cost."""
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
    missing = {job.fingerprint: job.config for job in plan.jobs if plan.outcome(job) is None}
    configs = list(missing.values())
    configs += [arm.config for arm in plan.unnamed()]
    cost = estimate(configs, resources.cache_dir)
    workers = resources.workers or default_workers(resources.threads)
    hours = cost.seconds / 3600 / workers
    console.print(
        f"{experiment.name} at scale {experiment.scale}: {cost.runs} runs to make, "
        f"{cost.flops:.2e} FLOP, {hours:.2f} hours on this machine ({workers} at a time, threads "
        f"each: {resources.threads}); disk: up to {workers * cost.checkpoint_bytes / 1e6:,.0f} MB "
        f"of checkpoints while it runs, {cost.kept_bytes / 1e6:,.1f} MB afterwards"
    )
    for note in cost.notes:
        console.print(f"note: {note}")


def _built_in(name: str, scale: str | None) -> "Experiment":
    from muonlab.lab.experiment import SCALES
    from muonlab.papers import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise UserError(
            f"study {name!r} is unknown; {did_you_mean(name, EXPERIMENTS)}"
            f"legal: {', '.join(EXPERIMENTS)}, or a file such as my_study.py"
        )
    if scale is not None and scale not in SCALES:
        raise UserError(
            f"scale {scale!r} is unknown; {did_you_mean(scale, SCALES)}legal: {', '.join(SCALES)}"
        )
    return EXPERIMENTS[name](scale or "small")


def _own(path: Path, scale: str | None) -> "list[Experiment]":
    from muonlab.lab.study_file import read_studies
    from muonlab.papers import EXPERIMENTS

    found = read_studies(path, scale)
    for experiment in found:
        if experiment.name in EXPERIMENTS:
            raise UserError(f"{path}: a built-in study is called {experiment.name!r}; rename yours")
    return found
