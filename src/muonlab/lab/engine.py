"""Making the runs of a study: what is missing, what was cut; side by side, until none is left."""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from muonlab.errors import FailedRunError, InterruptedRun, UserError
from muonlab.files import write_whole
from muonlab.lab.board import Board
from muonlab.lab.counts import write_counts
from muonlab.lab.executors import Executor, ExecutorName, open_executor
from muonlab.lab.experiment import Context, Measurement, Study
from muonlab.lab.plan import (
    ALL_DIVERGED,
    ROOT,
    Job,
    Outcome,
    Plan,
    folder,
    read_outcome,
    read_record,
)
from muonlab.lab.record import ROWS, command, write_facts, write_record, write_verdicts
from muonlab.lab.results import judge
from muonlab.lab.worker import FAILURE, Options, Reply, record_failure
from muonlab.manifest import made_by_other_code
from muonlab.places import corpora
from muonlab.runs import RunDirectory, RunError
from muonlab.signals import stop_signals

TICK_SECONDS = 0.5
BUSY_SECONDS = 2.0  # until a run that another process holds is tried again
DEATHS = 2  # of workers on the same run, until it counts as failed


class FailedRunsError(FailedRunError):
    """Some runs of a study ended in an error; all others have been made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """With what a study is run; none of it changes a result but ``threads``, by rounding."""

    workers: int | None = None
    threads: int = 1
    executor: ExecutorName = "local"
    cache_dir: Path | None = None  # None: the user's cache

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


def run_study(
    study: Study,
    root: Path = ROOT,
    resources: Resources | None = None,
    *,
    retry_failed: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> None:
    """Make every run of ``study`` that is missing, searches first, and judge its claims.

    Finished runs are skipped, cut ones resumed; several engines may work on one study. A run that
    diverges or fails is recorded and stops no other. Raises `InterruptedRun` after SIGINT or
    SIGTERM, when the runs under way have written their checkpoints, and `FailedRunsError` at the
    end if runs failed with an error, which a divergence is not.
    """
    resources = resources or Resources()
    console = console or Console(stderr=True)
    here = folder(study, root)
    here.mkdir(parents=True, exist_ok=True)
    if retry_failed:
        for failure in here.glob(f"*/{FAILURE}"):
            outcome = read_outcome(failure.parent)
            if outcome is None or outcome.status == "error":  # a divergence is a result
                failure.unlink()
    before = read_record(study, root)
    plan = Plan(study, root)
    with Board(plan, console) as board:
        if before and before.get("definition") != study.fingerprint() and plan.strangers():
            board.say(
                f"the definition has changed: {len(plan.strangers())} runs of the earlier one stay "
                f"in {here} and are not used"
            )
        if other_code := made_by_other_code(_finished_manifests(plan)):
            board.say(other_code)
        if plan.to_do() or not before:
            write_record(plan)
        if not keep_checkpoints:
            _sweep(here)
        if plan.to_do():
            _prepare_data(plan, resources.cache_dir)
            try:
                _make_runs(plan, board, resources, keep_checkpoints)
            finally:
                write_record(plan)
    write_verdicts(study, root, judge(study, root))
    _raise_failures(plan)


def run_measurement(
    measurement: Measurement,
    root: Path = ROOT,
    *,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> None:
    """Measure, unless its rows are there already, and judge the claims.

    Raises OSError where ``root`` cannot be written, before anything is measured.
    """
    console = console or Console(stderr=True)
    path = folder(measurement, root) / ROWS
    if path.exists():
        console.print(f"{path} is there; delete it to measure again", markup=False, soft_wrap=True)
    else:
        started = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(measurement.name, total=1.0)
            rows = measurement.measure(
                Context(cache_dir=cache_dir, advance=lambda done: bar.update(task, completed=done))
            )
        write_facts(measurement, root, {"seconds": time.monotonic() - started})
        write_whole(path, rows.to_csv(index=False))
    write_verdicts(measurement, root, judge(measurement, root))


def _make_runs(plan: Plan, board: Board, resources: Resources, keep_checkpoints: bool) -> None:
    options = Options(
        root=str(plan.root),
        cache_dir=str(resources.cache_dir or corpora()),
        threads=resources.threads,
    )
    log = folder(plan.study, plan.root) / "workers.log"
    with (
        stop_signals() as stop,
        open_executor(resources.executor, resources.workers, options, log) as executor,
    ):
        _Engine(plan, board, executor, keep_checkpoints=keep_checkpoints).loop(stop)
    left = len(plan.to_do()) + len(plan.unnamed())
    if stop and left:
        raise InterruptedRun(
            f"stopped with {left} runs of {plan.study.name} to do; `{command(plan.study)}` goes on"
        )


class _Engine:
    """The loop: start what can be started, take in what has ended."""

    def __init__(
        self, plan: Plan, board: Board, executor: Executor, *, keep_checkpoints: bool
    ) -> None:
        self._plan = plan
        self._board = board
        self._executor = executor
        self._keep_checkpoints = keep_checkpoints
        self._running: dict[str, Job] = {}
        self._busy: dict[str, float] = {}  # fingerprint → when to try it again
        self._deaths: Counter[str] = Counter()
        self._stopping = False

    def loop(self, stop: list[int]) -> None:
        """Until no run is left, or those under way have ended after a signal in ``stop``."""
        self._board.slots = self._executor.slots
        while True:
            if stop and not self._stopping:
                self._stopping = True
                self._executor.stop()
            waiting = [] if self._stopping else self._plan.to_do()
            self._fill(waiting)
            if not self._running and not waiting:
                return
            for job, reply in self._executor.wait(TICK_SECONDS):
                del self._running[job.fingerprint]
                self._take_in(job, reply)
            if any(due <= time.monotonic() for due in self._busy.values()):
                self._plan.refresh()  # who held the run may have finished it
                for job in self._plan.jobs:
                    if self._plan.outcome(job):
                        self._busy.pop(job.fingerprint, None)
            self._board.update()

    def _fill(self, waiting: list[Job]) -> None:
        """Give every free slot a run, last those that another process was seen to hold."""
        for job in sorted(waiting, key=lambda job: job.fingerprint in self._busy):
            if len(self._running) >= self._executor.slots:
                return
            due = self._busy.get(job.fingerprint, 0.0)
            if job.fingerprint not in self._running and due <= time.monotonic():
                self._running[job.fingerprint] = job
                self._board.started(job)
                self._executor.start(job)

    def _take_in(self, job: Job, reply: Reply) -> None:
        """Note how a run ended; what has no outcome then will be started again."""
        for note in reply.notes:
            self._board.say(note)
        searching = {name for name, state in self._plan.searches.items() if not state.complete}
        if reply.status == "failed":
            self._note_failure(job, reply.message)
        elif reply.status == "lost" and not self._stopping:
            self._note_death(job, reply.message)
        elif reply.status == "finished" and reply.message:
            self._board.say(f"{job.label}: {reply.message}")
        elif reply.status == "busy":
            if job.fingerprint not in self._busy:
                self._board.say(f"{job.label}: another process is at it and may have it")
            self._busy[job.fingerprint] = time.monotonic() + BUSY_SECONDS
        self._plan.refresh()
        outcome = self._plan.outcome(job)
        made_here = reply.status != "finished" or not reply.message
        self._board.ended(job, outcome if made_here else None)
        if outcome and outcome.status != "error" and not self._keep_checkpoints:
            shutil.rmtree(outcome.path / "checkpoints", ignore_errors=True)
        for name in sorted(searching):
            if (state := self._plan.searches[name]).complete:
                chosen = state.chosen or {}
                values = ", ".join(f"{field} {value:g}" for field, value in chosen.items())
                self._board.say(f"{name}: {f'tuned to {values}' if chosen else ALL_DIVERGED}")
                write_record(self._plan)

    def _note_failure(self, job: Job, message: str) -> None:
        found = read_outcome(job.path)  # absent if the disk is full
        failure = Outcome(status="error", path=job.path, figures={}, error=message)
        self._plan.note(job, found or failure)

    def _note_death(self, job: Job, message: str) -> None:
        self._deaths[job.fingerprint] += 1
        if self._deaths[job.fingerprint] < DEATHS:
            self._board.say(f"{job.label}: {message}; it is started again")
            return
        message = f"{message}, {DEATHS} times on this run"
        record_failure(job.path, RuntimeError(message))
        self._note_failure(job, message)


def _finished_manifests(plan: Plan) -> Iterator[dict[str, Any]]:
    outcomes = filter(None, map(plan.outcome, plan.jobs))
    for path in {outcome.path for outcome in outcomes if outcome.status == "finished"}:
        with contextlib.suppress(RunError):  # the report says what is damaged
            yield RunDirectory(path).manifest()


def _prepare_data(plan: Plan, cache_dir: Path | None) -> None:
    """Build the corpora once, before several workers ask for them, and count their tokens.

    Raises DataError.
    """
    configs = {arm.config.data.cache_key(): arm.config.data for arm in plan.study.arms}
    prepared = {key: data.prepare(cache_dir) for key, data in configs.items()}
    write_counts(folder(plan.study, plan.root), prepared)


def _sweep(here: Path) -> None:
    """Delete checkpoints of runs that have ended: an engine may have died before it did."""
    for checkpoints in here.glob("*/checkpoints"):
        outcome = read_outcome(checkpoints.parent)
        if outcome and outcome.status != "error":
            shutil.rmtree(checkpoints, ignore_errors=True)


def _raise_failures(plan: Plan) -> None:
    failed = [outcome for job in plan.jobs if (outcome := plan.outcome(job))]
    errors = [outcome for outcome in failed if outcome.status == "error"]
    if errors:
        raise FailedRunsError(
            f"{len(errors)} of {len(plan.jobs)} runs failed, such as {errors[0].path}: "
            f"{errors[0].error}; --retry-failed makes them again"
        )
