"""Reading runs: whole, unfinished, cut, broken."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from muonlab.report import read_run, read_runs
from muonlab.report.curves import clock_runs_forwards
from muonlab.runs import RunError

from .conftest import STEPS, TOKENS_A_STEP, WriteRun


def test_a_finished_run(write_run: WriteRun) -> None:
    run = read_run(write_run("muon", 3, warnings=("leaky",)))
    assert (run.config.variant, run.config.seed) == ("muon", 3)
    assert run.finished
    assert run.warnings == ["leaky"]
    assert list(run.metrics["step"]) == list(range(STEPS + 1))
    assert np.count_nonzero(run.metrics["val/loss"].notna()) == 7
    assert math.isnan(next(iter(run.metrics["train/loss"]))), "step 0 is an evaluation only"
    assert run.final["optimizer_share"] == 0.125
    assert run.final["val/loss"] == run.metrics["val/loss"].iloc[-1]


def test_an_unfinished_run_ends_at_its_last_values(write_run: WriteRun) -> None:
    run = read_run(write_run("muon", finished=False, steps=35))
    assert not run.finished
    assert run.final["step"] == 35
    assert run.final["train_seconds"] == 0.25 * 35
    assert run.final["tokens_per_second"] == TOKENS_A_STEP / 0.25
    assert run.final["val/loss"] == run.metrics["val/loss"][30]


def test_a_run_that_only_began_has_no_rows(write_run: WriteRun) -> None:
    path = write_run("muon", finished=False)
    (path / "metrics.jsonl").unlink()
    run = read_run(path)
    assert run.metrics.empty
    assert math.isnan(run.final["train_seconds"])


def test_half_a_last_line_is_dropped_and_a_repeated_step_counts_once(write_run: WriteRun) -> None:
    path = write_run("muon", finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "tokens": 1, "time": 1.0, "train/loss": 9.0}) + "\n")
        file.write('{"step": 61, "tok')
    run = read_run(path)
    assert len(run.metrics) == STEPS + 1
    assert run.metrics["train/loss"].iloc[-1] == 9.0


def test_null_and_nan_are_gaps(write_run: WriteRun) -> None:
    path = write_run("muon", finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "tokens": 1, "train/loss": null}\n')
        file.write('{"step": 62, "tokens": 1, "train/loss": NaN}\n')
    run = read_run(path)
    assert np.isnan(run.metrics["train/loss"].iloc[-2:]).all()
    assert math.isfinite(run.final["train/loss"])


def test_a_clock_that_goes_backwards_is_noticed(write_run: WriteRun) -> None:
    path = write_run("muon", finished=False)
    assert clock_runs_forwards(read_run(path).metrics)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "tokens": 1, "time": 2.0}\n')
    assert not clock_runs_forwards(read_run(path).metrics)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b'{"wat": 1}'),
        ("manifest.json", None),
        ("manifest.json", b"[1]"),
        ("manifest.json", b"\xff\xfe"),
        ("summary.json", b""),
        ("metrics.jsonl", b'nonsense\n{"step": 1}\n'),
        ("metrics.jsonl", b'{"loss": 1}\n{"step": 1}\n'),
        ("metrics.jsonl", b"3\n4\n"),
        ("metrics.jsonl", b"\xff\xfe\n\n"),
    ],
)
def test_a_broken_run_is_one_line_that_names_it(
    write_run: WriteRun, file: str, content: bytes | None
) -> None:
    path = write_run("muon")
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    with pytest.raises(RunError) as error:
        read_run(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    whole = write_run("adamw")
    runs, problems = read_runs([path, whole, Path("/nowhere")])
    assert [run.path for run in runs] == [whole]
    assert len(problems) == 2
