"""The study engine's own speed: status, report, and how to share two cores.

    python -m benchmarks.study [--part status|report|workers]

`status` and `report` read invented runs; Chromium opens the report's page, if there is one.
`workers` makes two runs at a time as a study does, evaluation and files included: by two workers
with one thread each, and by one worker with two threads.
"""

import dataclasses
import statistics
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.bench.interleave import interleave, paired_ratio
from muonlab.config import RunConfig
from muonlab.lab.baselines import with_updates
from muonlab.lab.executors import Executor, open_executor
from muonlab.lab.experiment import Study
from muonlab.lab.plan import Job, Plan
from muonlab.lab.record import status, write_record
from muonlab.lab.worker import Options
from muonlab.papers.protocols import p1_base, p2_base
from muonlab.report.study import write_study
from muonlab.runs import RunDirectory
from tests.report.browser import CHROMIUM, browser
from tests.report.invented_studies import invented_study, make_runs

LAYOUTS = {"2 workers × 1 thread": (2, 1), "1 worker × 2 threads": (1, 2)}


def study_of(arms: int, seeds: int) -> Study:
    """The invented study with that many untuned arms."""
    first = invented_study().arms[0]
    copies = tuple(
        dataclasses.replace(
            first,
            name=f"arm-{number}",
            search=None,
            config=dataclasses.replace(
                first.config,
                optimizer=dataclasses.replace(first.config.optimizer, lr=1e-3 * (1 + number)),
            ),
        )
        for number in range(arms)
    )
    return invented_study(
        arms=copies,
        seeds=tuple(range(seeds)),
        comparisons=(),
        paper=(),
        claims=(),
        judge=lambda frame: [],
    )


def time_status(console: Console, root: Path) -> None:
    study = study_of(arms=50, seeds=20)
    make_runs(study, root, steps=2)
    write_record(Plan(study, root))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        status(study, root)
        seconds.append(time.perf_counter() - start)
    finished = status(study, root).counts["finished"]
    console.print(f"status: {finished:,} runs in {statistics.median(seconds):.2f} s")


def time_report(console: Console, root: Path) -> None:
    study = study_of(arms=40, seeds=5)
    make_runs(study, root, steps=250)
    start = time.perf_counter()
    page = write_study(study, root, root / "out")
    built = time.perf_counter() - start
    size = page.stat().st_size / 1e6
    console.print(f"report: 200 runs of 250 updates in {built:.1f} s, page {size:.1f} MB")
    if CHROMIUM is None:
        console.print("report: no Chromium to open the page with")
        return
    with browser(root / "profile") as opened:
        for visit in ("first", "second"):
            start = time.perf_counter()
            opened.events.clear()
            opened.open(page)
            console.print(f"report: {visit} opening {time.perf_counter() - start:.2f} s")


def time_workers(console: Console, root: Path, rounds: int, updates: int) -> None:
    table = Table(title=f"Two runs of {updates} updates, {rounds} rounds, medians")
    table.add_column("Model")
    for layout in LAYOUTS:
        table.add_column(f"{layout} (s)", justify="right")
    table.add_column("Ratio", justify="right")
    configs = {"P2's nano": p2_base("nano", "honest"), "P1's small": p1_base("small")}
    with ExitStack() as stack:
        executors = {}
        for layout, (workers, threads) in LAYOUTS.items():
            options = Options(root=str(root), cache_dir="cache", threads=threads)
            log = root / f"workers-{threads}.log"
            executors[layout] = stack.enter_context(open_executor("local", workers, options, log))
        seeds = count()
        for name, config in configs.items():
            short = with_updates(config, updates)
            timings = interleave(
                {
                    layout: lambda executor=executor, config=short: two_runs(
                        executor, config, root, seeds
                    )
                    for layout, executor in executors.items()
                },
                rounds=rounds,
                warmup=1,
            )
            two, one = timings.values()
            ratio = paired_ratio(one, two)
            table.add_row(name, f"{two.median:.1f}", f"{one.median:.1f}", f"{ratio:.2f}×")
    console.print(table)


def two_runs(executor: Executor, config: RunConfig, root: Path, seeds: "count[int]") -> None:
    """Make the next two seeds of ``config`` and wait for both."""
    waiting = [_job(dataclasses.replace(config, seed=next(seeds)), root) for _ in range(2)]
    under_way = 0
    while waiting or under_way:
        while waiting and under_way < executor.slots:
            executor.start(waiting.pop())
            under_way += 1
        for job, reply in executor.wait(60.0):
            if reply.status != "finished":
                raise RuntimeError(f"{job.label}: {reply.status} {reply.message}")
            under_way -= 1


def _job(config: RunConfig, root: Path) -> Job:
    path = RunDirectory.place(root, config).path
    fingerprint = config.fingerprint()
    return Job(
        arm="timed", kind="test", config=config, values={}, fingerprint=fingerprint, path=path
    )


def main(
    part: Literal["status", "report", "workers", "all"] = "all",
    rounds: int = 5,
    updates: int = 40,
) -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if part in ("status", "all"):
            time_status(console, root / "status")
        if part in ("report", "all"):
            time_report(console, root / "report")
        if part in ("workers", "all"):
            (root / "workers").mkdir()
            time_workers(console, root / "workers", rounds, updates)


if __name__ == "__main__":
    tyro.cli(main)
