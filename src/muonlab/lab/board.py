"""What a person sees of a study under way: runs done, time left, current runs with their loss."""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from muonlab.config import RunConfig
from muonlab.lab.cost import model_flops
from muonlab.lab.plan import Job, Outcome, Plan


class Rates:
    """How long runs take: as others of their arm took, else by the FLOPs of any other."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._pairs: list[tuple[float, float]] = []  # seconds, FLOPs

    def learn(self, job: Job, seconds: float) -> None:
        """Note that this run took so long, from a clock that never goes back."""
        self._seconds[job.arm].append(seconds)
        self._pairs.append((seconds, model_flops(job.config)))

    def seconds(self, arm: str, config: RunConfig) -> float:
        """Expected; NaN before any run has finished."""
        if known := self._seconds.get(arm):
            return sum(known) / len(known)
        flops = sum(flops for _, flops in self._pairs)
        if not flops:
            return math.nan
        return model_flops(config) * sum(seconds for seconds, _ in self._pairs) / flops


class Board:
    """A live display on a terminal; elsewhere, such as in a log file, a line for each run."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self.slots = 1  # runs side by side
        self._rates = Rates()
        self._started: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._progress = Progress(
            *columns,
            console=console,
            expand=True,
            refresh_per_second=2,
            disable=not console.is_terminal,
            transient=True,
        )
        name = f"{plan.study.name} {plan.study.scale}"
        self._total = self._progress.add_task(name, total=None, note="")
        for job in plan.jobs:  # of an earlier command
            outcome = plan.outcome(job)
            if outcome and isinstance(outcome.figures.get("train_seconds"), float):
                self._rates.learn(job, outcome.figures["train_seconds"])

    def __enter__(self) -> "Board":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, job: Job) -> None:
        self._started[job.fingerprint] = time.monotonic()
        self._tasks[job.fingerprint] = self._progress.add_task(
            f"  {job.label}", total=job.config.train.steps, note=""
        )

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        """A run has stopped; ``outcome`` None: it will go on later."""
        seconds = time.monotonic() - self._started.pop(job.fingerprint)
        self._progress.remove_task(self._tasks.pop(job.fingerprint))
        if outcome is None:
            return
        if outcome.status == "finished":
            self._rates.learn(job, seconds)
            how = f"validation loss {outcome.figures.get('val/loss', math.nan):.4f}"
        else:
            how = f"{outcome.status}: {outcome.error}"
        done, total = self._counts()
        self.say(
            f"{done}/{total} {job.label}: {how}, {seconds:.1f} s, {_span(self.seconds_left())} left"
        )

    def update(self) -> None:
        """Redraw from what the current runs have logged; free of cost where nothing is drawn."""
        if self._progress.disable:
            return
        for job in self._plan.jobs:
            if (task := self._tasks.get(job.fingerprint)) is not None:
                step, loss = latest_loss(job.path)
                self._progress.update(task, completed=step, note=f"loss {loss:.3f}")
        done, total = self._counts()
        note = f"{_span(self.seconds_left())} left"
        self._progress.update(self._total, completed=done, total=total, note=note)

    def seconds_left(self) -> float:
        """Over all runs still to make; NaN while there is nothing to judge by."""
        open_jobs = self._plan.to_do()
        left = 0.0
        for job in open_jobs:
            whole = self._rates.seconds(job.arm, job.config)
            started = self._started.get(job.fingerprint)
            spent = 0.0 if started is None else time.monotonic() - started
            left += max(whole - spent, 0.0) if math.isfinite(whole) else math.nan
        left += sum(self._rates.seconds(arm.name, arm.config) for arm in self._plan.unnamed())
        return left / self.slots

    def _counts(self) -> tuple[int, int]:
        done = sum(self._plan.outcome(job) is not None for job in self._plan.jobs)
        return done, len(self._plan.jobs) + len(self._plan.unnamed())


def latest_loss(path: Path) -> tuple[int, float]:
    """Step and training loss of the last whole row that has one, from the file's end alone."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, 2) - 4096, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0, math.nan
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return row["step"], float(row["train/loss"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0, math.nan


def _span(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
