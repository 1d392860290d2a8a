"""Engines and workers as processes that are killed, interrupted and started twice."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tiny_studies import arm, long_study, start_engine, study_of, written

from muonlab.config import RunConfig
from muonlab.lab.engine import FailedRunsError, Resources, run_study
from muonlab.lab.experiment import Study
from muonlab.lab.record import status
from muonlab.lab.results import StudyResults
from muonlab.runs import RunDirectory

pytestmark = [
    pytest.mark.slow,  # a minute and more, with several processes for every core
    pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found in /proc"),
]

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "studies"


def wait_for(condition: Callable[[], object], *needed: subprocess.Popen[str]) -> None:
    """Until the condition holds; the processes that bring it about must not have ended."""
    end = time.monotonic() + 240
    while not condition():
        assert all(process.poll() is None for process in needed), "it ended too soon"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(child) for child in children]
    return []


def checkpoints(root: Path) -> set[Path]:
    return {path.parents[1] for path in root.rglob("checkpoints/step-*")}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rsplit(")", 1)[1].split()[0] != "Z"


def assert_whole(study: Study, root: Path, uncut: Path) -> None:
    """Every run finished once, with the figures that it has uninterrupted."""
    frame, expected = StudyResults(study, root).frame, StudyResults(study, uncut).frame
    assert list(frame["status"]) == ["finished"] * 4
    assert list(frame["val/loss"]) == pytest.approx(list(expected["val/loss"]), abs=1e-6)
    assert len(written(root)) == 4
    for rows in StudyResults(study, root).curves.values():
        steps = rows.dropna(subset=["train/loss"])["step"]
        assert list(steps) == list(range(1, study.arms[0].config.train.steps + 1))


@pytest.fixture(scope="module")
def uncut(
    make_config: MakeConfig, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`long_study` without interruption."""
    root = tmp_path_factory.mktemp("uncut")
    resources = Resources(workers=1, cache_dir=cache_dir)
    run_study(long_study(make_config()), root, resources, console=Console(quiet=True))
    return root


def test_killed_workers_are_replaced(
    make_config: MakeConfig, root: Path, cache_dir: Path, uncut: Path
):
    with start_engine(make_config(), root, cache_dir) as process:
        wait_for(lambda: len(checkpoints(root)) == 2, process)
        victim = workers_of(process)[0]
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "ended by signal 9; it is started again" in said
    assert_whole(long_study(make_config()), root, uncut)


def test_a_killed_engine_takes_its_workers_along_and_can_be_repeated(
    make_config: MakeConfig, root: Path, cache_dir: Path, uncut: Path
):
    study = long_study(make_config())
    with start_engine(make_config(), root, cache_dir) as process:
        wait_for(lambda: len(checkpoints(root)) == 2, process)
        orphans = workers_of(process)
        process.kill()
        process.communicate()
    assert len(orphans) == 2
    wait_for(lambda: not any(alive(pid) for pid in orphans))
    assert status(study, root).counts["interrupted"] == 2
    with start_engine(make_config(), root, cache_dir) as process:
        assert process.wait() == 0
    assert_whole(study, root, uncut)


def test_ctrl_c_writes_checkpoints_and_says_how_to_go_on(
    make_config: MakeConfig, root: Path, cache_dir: Path
):
    with start_engine(make_config(), root, cache_dir) as process:
        wait_for(lambda: len(checkpoints(root)) == 2, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    last = said.splitlines()[-1]
    assert re.fullmatch(
        r"muonlab: stopped with \d runs of long to do; "
        r"`muonlab study run long --scale nano` goes on",
        last,
    )
    steps = [RunDirectory(path).checkpoint_steps()[-1] for path in checkpoints(root)]
    logged = [RunDirectory(path).metrics()[-1]["step"] for path in checkpoints(root)]
    assert sorted(steps) == sorted(logged), "the checkpoint is of the last step"


def test_two_engines_share_a_study(
    make_config: MakeConfig, root: Path, cache_dir: Path, uncut: Path
):
    study = long_study(make_config())
    with (
        start_engine(make_config(), root, cache_dir) as one,
        start_engine(make_config(), root, cache_dir) as other,
    ):
        said = one.communicate()[1] + other.communicate()[1]
    assert (one.returncode, other.returncode) == (0, 0), said
    assert_whole(study, root, uncut)
    assert len(re.findall(r"validation loss .*, \d+\.\d s,", said)) == 4, said


def test_a_run_that_kills_its_worker_twice_has_failed(
    make_config: MakeConfig, root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    deadly = root.parent / "python"
    deadly.write_text("#!/bin/sh\nread run\nkill -9 $$\n")
    deadly.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(deadly))
    study = study_of(arm("muon", make_config()), seeds=(0,))
    resources = Resources(workers=1, cache_dir=cache_dir)
    with pytest.raises(FailedRunsError, match="signal 9, 2 times on this run"):
        run_study(study, root, resources, console=Console(quiet=True))
    assert list(StudyResults(study, root).frame["status"]) == ["failed"]
