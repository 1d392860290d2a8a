"""A run's directory as numbers: tolerant of runs that were cut, clear about broken ones."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.config import RunConfig
from muonlab.runs import RunDirectory, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run as its directory tells it.

    ``metrics`` has one row a step; ``final`` holds the summary's figures or, of an unfinished run,
    the last value of every metric.
    """

    path: Path
    config: RunConfig
    manifest: dict[str, Any]
    metrics: pd.DataFrame
    final: dict[str, float]
    finished: bool

    @property
    def warnings(self) -> list[str]:
        """What the run itself says against its numbers, such as a leaky split."""
        return [str(warning) for warning in self.manifest.get("warnings", [])]

    @property
    def machine(self) -> dict[str, Any]:
        return self.manifest.get("machine", {})


def read_run(path: Path) -> Run:
    """Read one run directory. Raises RunError."""
    directory = RunDirectory(path)
    finished = (path / "summary.json").exists()
    metrics = _frame(directory)
    final: dict[str, float] = {}
    for key in metrics.columns:
        values = metrics[key].dropna().to_numpy()
        if len(values):
            final[str(key)] = float(values[-1])
    if finished:
        final |= _numbers(directory.summary())
    else:  # what the summary would say, as far as it goes
        seconds = final.get("time") or math.nan
        final["train_seconds"] = seconds
        final["tokens_per_second"] = final.get("tokens", math.nan) / seconds
    return Run(
        path=path,
        config=directory.config(),
        manifest=directory.manifest(),
        metrics=metrics,
        final=final,
        finished=finished,
    )


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and one line for each that cannot."""
    runs: list[Run] = []
    problems: list[str] = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except RunError as error:
            problems.append(str(error))
    return runs, problems


def hardware(manifest: Mapping[str, Any]) -> str:
    """What a run was made on, and its dtype, as a manifest tells it."""
    machine = manifest.get("machine", {})
    name = machine.get("gpu") or machine.get("processor", "unknown machine")
    threads = machine.get("threads", "?")
    unit = "thread" if threads == 1 else "threads"
    return f"{name}, {threads} {unit}, {manifest.get('dtype', 'unknown dtype')}"


def _frame(directory: RunDirectory) -> pd.DataFrame:
    """One row a step, from rows of training and of evaluation; of two values the later counts."""
    try:
        rows = [{"step": row["step"]} | _numbers(row) for row in directory.metrics()]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise RunError(
            f"{directory.path / 'metrics.jsonl'} does not hold rows of metrics"
        ) from None
    if not rows:
        return pd.DataFrame({"step": [], "tokens": [], "time": []}, dtype=float)
    return pd.DataFrame(rows).groupby("step").last().reset_index().astype(float)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
