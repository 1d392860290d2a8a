"""`muonlab study …`: what it prints, and what it refuses."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_studies import LEARNING_RATE, arm, judge, study_of

from muonlab.cli import run
from muonlab.config import RunConfig
from muonlab.lab.experiment import SCALES, Measurement, Study
from muonlab.lab.plan import Plan, folder
from muonlab.lab.record import status, write_record
from muonlab.papers import EXPERIMENTS

MakeConfig = Callable[..., RunConfig]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def study(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The only experiment there is, beside a measurement."""
    config = make_config("train.steps=3")
    study = study_of(
        arm("muon", config, search=LEARNING_RATE),
        arm("adamw", config, "optimizer.kind=adamw", "model.dim=16"),
        notes=("Small.",),
    )
    measurement = Measurement(
        name="timed",
        scale="nano",
        question="How long?",
        claims=(),
        measure=lambda context: pytest.fail("it was measured"),
        judge=judge,
    )
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, "tiny", lambda scale: study)
    monkeypatch.setitem(EXPERIMENTS, "timed", lambda scale: measurement)
    return study


def printed(capsys: Capture, *arguments: str) -> str:
    assert run(["study", *arguments]) == 0
    return capsys.readouterr().out


def test_list(study: Study, capsys: Capture):
    text = printed(capsys, "list", "--scale", "nano")
    assert re.search(r"tiny\s+4 \+ 6 trials\s+T-1\s+Does it run\?", text)
    assert re.search(r"timed\s+measured", text)


def test_show_names_what_differs_from_the_first_arm(study: Study, capsys: Capture):
    text = printed(capsys, "show", "tiny", "--scale", "nano")
    assert "Does it run?" in text
    assert "seeds: 0, 1" in text
    assert "arm muon (honest), 4 trials of optimizer.lr in [0.001, 0.1], the best 2 again" in text
    changes = text.split("arm adamw (honest)")[1]
    assert "model.dim: 32 → 16" in changes
    assert "optimizer.kind: muon → adamw" in changes
    assert "train." not in changes
    assert "note: Small." in text


def test_dry_run_says_what_is_missing_and_makes_nothing(
    study: Study, capsys: Capture, tmp_path: Path, cache_dir: Path
):
    places = ["--runs-dir", str(tmp_path / "s"), "--cache-dir", str(cache_dir)]
    text = printed(capsys, "run", "--scale", "nano", "--dry-run", "--workers", "2", *places)
    assert re.search(
        r"tiny at scale nano: 10 runs to make, \d\.\d\de\+\d\d FLOP, \d+\.\d\d hours on this "
        r"machine \(2 at a time, threads each: 1\); disk: up to [\d.]+ MB of checkpoints while it "
        r"runs, [\d.]+ MB afterwards",
        text,
    )
    assert "timed: a measurement, no runs" in text
    assert not (tmp_path / "s").exists()


def test_status_of_what_has_not_begun(study: Study, capsys: Capture, tmp_path: Path):
    text = printed(capsys, "status", "--scale", "nano", "--runs-dir", str(tmp_path))
    assert re.search(r"tiny\s+10\s*\n", text)
    assert re.search(r"timed\s+1\s*\n", text)


def test_status_over_a_thousand_runs_reads_no_run(make_config: MakeConfig, tmp_path: Path):
    study = study_of(arm("muon", make_config()), seeds=tuple(range(1000)))
    plan = Plan(study, tmp_path)
    write_record(plan)
    for number, job in enumerate(plan.jobs):
        job.path.mkdir(parents=True)
        (job.path / "config.json").write_text("not read")
        if number < 600:
            (job.path / "summary.json").write_text("not read")
        elif number < 700:
            (job.path / "failed.json").write_text("not read")
        elif number < 800:
            (job.path / "checkpoints" / "step-00000002").mkdir(parents=True)
    start = time.perf_counter()
    found = status(study, tmp_path)
    print(f"{time.perf_counter() - start:.2f} s")
    assert found.counts == {"finished": 600, "failed": 100, "interrupted": 300}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["run", "no-such"],
            "study 'no-such' is unknown; legal: tiny, timed, or a file such as my_study.py",
        ),
        (
            ["status", "no-such"],
            "study 'no-such' is unknown; legal: tiny, timed, or a file such as my_study.py",
        ),
        (
            ["show", "no-such"],
            "study 'no-such' is unknown; legal: tiny, timed, or a file such as my_study.py",
        ),
        (["run", "tiny", "--workers", "0"], "workers is 0; it must be at least 1"),
        (["run", "tiny", "--threads", "0"], "threads is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(study: Study, capsys: Capture, arguments: list[str], complaint: str):
    assert run(["study", *arguments]) == 2
    assert capsys.readouterr().err == f"muonlab: {complaint}\n"


@pytest.mark.parametrize("flag", ["--seeds", "--only", "--optimizer.lr"])
def test_a_study_takes_no_hyper_parameters(study: Study, flag: str):
    assert run(["study", "run", "tiny", flag, "1"]) == 2


def test_an_unknown_scale_is_refused(study: Study, capsys: Capture):
    assert run(["study", "run", "tiny", "--scale", "huge"]) == 2
    error = capsys.readouterr().err
    assert all(scale in error for scale in SCALES)


def test_without_ray_the_executor_says_what_to_install(
    study: Study, capsys: Capture, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    places = ["--runs-dir", str(tmp_path), "--cache-dir", str(cache_dir)]
    assert run(["study", "run", "tiny", "--executor", "ray", *places]) == 2
    assert "executor ray is not installed; pip install 'muonlab[cluster]'" in (
        capsys.readouterr().err
    )
    record = json.loads((folder(study, tmp_path) / "study.json").read_text())
    assert record["question"] == study.question
