"""The engine: every run once, whatever dies; nothing lost, nothing made twice."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from tiny_studies import LEARNING_RATE, arm, judge, study_of, written

import muonlab.train
from muonlab.config import RunConfig, override
from muonlab.data import SplitName, TokenData
from muonlab.lab import engine
from muonlab.lab.engine import FailedRunsError, Resources, run_measurement, run_study
from muonlab.lab.executors import Executor
from muonlab.lab.experiment import Context, Measurement, Study
from muonlab.lab.plan import Job, Plan, folder
from muonlab.lab.record import status
from muonlab.lab.results import StudyResults, with_headline
from muonlab.lab.results import judge as judge_study
from muonlab.lab.worker import Options, Reply, make_run, record_failure
from muonlab.model import LanguageModel
from muonlab.runs import RunDirectory, RunError
from muonlab.train import train

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def config(make_config: MakeConfig) -> RunConfig:
    return make_config("train.steps=3")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "studies"


class InThisProcess:
    """An executor without the seconds that a process takes to start."""

    slots = 1

    def __init__(self, options: Options) -> None:
        self._options = options
        self._jobs: list[Job] = []

    def start(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Reply]]:
        jobs, self._jobs = self._jobs, []
        return [
            (job, make_run(job.config, self._options, read_test=job.reads_test)) for job in jobs
        ]

    def stop(self) -> None:
        pass


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def open_executor(
        name: str, workers: int | None, options: Options, log: Path
    ) -> Iterator[Executor]:
        yield InThisProcess(options)

    monkeypatch.setattr(engine, "open_executor", open_executor)


@pytest.fixture
def make(
    in_this_process: None, root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a study; what the engine said."""

    def call(study: Study, **options: bool) -> str:
        resources = Resources(workers=1, cache_dir=cache_dir)
        console = Console(stderr=True, width=10_000)
        try:
            run_study(study, root, resources, console=console, **options)
        finally:
            said = capsys.readouterr().err
        return said

    return call


def test_runs_are_made_once_and_equal_those_of_train(
    config: RunConfig,
    root: Path,
    tiny_data: TokenData,
    make: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    study = study_of(arm("muon", config, labels={"optimizer": "Muon"}), arm("p", config))
    said = make(study)
    frame = StudyResults(study, root).frame
    assert list(frame["status"]) == ["finished"] * 4
    assert list(frame["optimizer"].dropna()) == ["Muon"] * 2
    assert "4/4" in said

    alone = RunDirectory.place(tmp_path / "alone", study.arms[0].run("x", 1))
    summary = train(study.arms[0].run("x", 1), alone, tiny_data, progress=False)
    losses = frame["val/loss"].tolist()
    assert losses[1] == pytest.approx(summary["val/loss"], abs=1e-6)

    # Both arms are the same config: they share their two runs.
    before = written(root)
    assert len(before) == 2
    assert not list(root.rglob("checkpoints"))
    assert json.loads((folder(study, root) / "verdicts.json").read_text())[0]["verdict"] == (
        "reproduced"
    )
    assert "other code" not in make(study)
    monkeypatch.setattr("muonlab.manifest.__version__", "0.0")
    monkeypatch.setattr("muonlab.manifest.git_state", dict)
    assert "2 of 2 finished runs were made by other code (muonlab " in make(study)
    assert written(root) == before
    assert {len(rows) for rows in StudyResults(study, root).curves.values()} == {5}

    other = study_of(arm("again", config), seeds=(1,), name="other")
    make(other)
    assert written(root) == before, "the run of another study serves as well"


def test_searches_come_first_and_tune_the_test_runs(
    config: RunConfig, root: Path, make: Callable[..., str]
):
    study = study_of(
        arm("follows", config, "optimizer.momentum=0.9", tuned_as="muon"),
        arm("muon", config, search=LEARNING_RATE),
        seeds=(0,),
    )
    said = make(study)
    tried = StudyResults(study, root).trials
    trials, repeats = (tried.loc[tried["kind"] == kind] for kind in ("trial", "repeat"))
    assert len(trials) == LEARNING_RATE.trials
    best_two = trials.nsmallest(2, "loss")["tuned/optimizer.lr"]
    assert set(repeats["tuned/optimizer.lr"]) == set(best_two)
    assert set(repeats["seed"]) == {91}, "another seed than the trials', and no test run's"
    best = repeats.loc[repeats["loss"].idxmin(), "tuned/optimizer.lr"]
    assert set(tried.loc[tried["chosen"], "tuned/optimizer.lr"]) == {best}
    frame = StudyResults(study, root).frame
    assert set(frame["regret"]) == {repeats["loss"].max() - repeats["loss"].min()}
    assert list(frame["tuned/optimizer.lr"]) == [best, best]
    runs = [RunDirectory(Path(path)).config() for path in frame["run"]]
    assert [run.optimizer.lr for run in runs] == [best, best]
    assert f"muon: tuned to optimizer.lr {best:g}" in said
    assert status(study, root).tuned == {arm.name: {"optimizer.lr": best} for arm in study.arms}
    # Without the record the tuner asks for the same trials again.
    before = written(root)
    (folder(study, root) / "study.json").unlink()
    make(study)
    assert written(root) == before


def test_the_test_split_is_read_once_by_each_test_run_after_every_choice(
    config: RunConfig, root: Path, make: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[str, int]] = []
    whole = muonlab.train.evaluate

    def spy(model: LanguageModel, data: TokenData, split: SplitName, **how: Any):
        seen.append((split, data.num_tokens(split)))
        return whole(model, data, split, **how)

    monkeypatch.setattr(muonlab.train, "evaluate", spy)
    study = study_of(arm("plain", config), arm("muon", config, search=LEARNING_RATE), seeds=(0,))
    make(study)
    splits = [split for split, _ in seen]
    assert splits.count("test") == 2, "one for each test run"
    first = splits.index("test")
    assert splits[:first].count("validation") >= 2 * LEARNING_RATE.total_runs, "every search first"
    results = StudyResults(study, root)
    for trial in results.trials["run"].tolist():
        assert not any(key.startswith("test/") for key in RunDirectory(Path(trial)).summary())
    frame = results.frame
    assert set(frame["split"]) == {"test"}
    assert list(frame["loss"]) == list(frame["test/loss"]) != list(frame["val/loss"])
    make(study)
    assert len(seen) == len(splits), "never again"


def test_a_seed_is_done_in_all_arms_before_the_next(config: RunConfig, root: Path):
    slow = override(config, ["optimizer.lr=1e-3"])
    jobs = Plan(study_of(arm("muon", config), arm("slow", slow), seeds=(0, 1)), root).jobs
    assert [(job.config.seed, job.arm) for job in jobs] == [
        (0, "muon"),
        (0, "slow"),
        (1, "muon"),
        (1, "slow"),
    ]


def test_a_diverging_run_is_a_result(config: RunConfig, root: Path, make: Callable[..., str]):
    wild = override(config, ["train.steps=20", "optimizer.lr=1e9"])
    study = study_of(arm("wild", wild), arm("muon", config), seeds=(0,))
    said = make(study)
    frame = StudyResults(study, root).frame.set_index("arm")
    assert frame["status"].to_dict() == {"wild": "failed", "muon": "finished"}
    assert frame["val/loss"].to_dict()["wild"] == math.inf
    assert "diverged: step" in said
    assert status(study, root).counts == {"failed": 1, "finished": 1}
    assert make(study) == "", "it is not tried again"
    assert make(study, retry_failed=True) == "", "nor is a result an error to try again"


def test_a_search_whose_trials_all_diverge(config: RunConfig, root: Path, make: Callable[..., str]):
    wild = override(config, ["train.steps=20", "optimizer.lr=1e9"])
    search = type(LEARNING_RATE)(space={"optimizer.lr": (1e8, 1e9)}, trials=3, seed=90)
    study = study_of(arm("wild", wild, search=search), seeds=(0,))
    assert "every trial of its search diverged" in make(study)
    (row,) = StudyResults(study, root).frame.to_dict("records")
    assert (row["status"], row["val/loss"]) == ("failed", math.inf)


def test_an_error_is_recorded_and_stops_no_other(
    config: RunConfig, root: Path, make: Callable[..., str]
):
    broken = override(config, ["model.vocab_size=260"])  # the tokenizer has 300
    study = study_of(arm("broken", broken), arm("muon", config), seeds=(0,))
    with pytest.raises(FailedRunsError, match=r"1 of 2 runs failed.*model.vocab_size is 260"):
        make(study)
    frame = StudyResults(study, root).frame.set_index("arm")
    assert list(frame["status"]) == ["failed", "finished"]
    assert math.isnan(frame["val/loss"].loc["broken"])
    (failure,) = root.rglob("failed.json")
    assert "ConfigError" in json.loads(failure.read_text())["traceback"]
    record_failure(failure.parent, RuntimeError("a cable was pulled"))
    with pytest.raises(FailedRunsError, match="1 of 2 runs failed"):
        make(study, retry_failed=True)


def test_a_changed_definition_keeps_its_old_runs_apart(
    config: RunConfig, root: Path, make: Callable[..., str]
):
    make(study_of(arm("muon", config)))
    before = written(root)
    changed = study_of(arm("muon", config, "optimizer.lr=0.03"))
    assert status(changed, root).changed
    said = make(changed)
    assert "the definition has changed: 2 runs of the earlier one stay" in said
    assert before.items() <= written(root).items()
    assert len(written(root)) == 4
    assert not status(changed, root).changed


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "metrics.jsonl", "summary.json"])
def test_a_damaged_run_is_set_aside_and_made_again(
    config: RunConfig, root: Path, make: Callable[..., str], name: str
):
    study = study_of(arm("muon", config), seeds=(0,))
    make(study)
    (run,) = (path.parent for path in root.rglob("summary.json"))
    if name != "summary.json":
        (run / "summary.json").unlink()
    (run / name).write_text("{half a l\n")
    said = make(study)
    assert "set aside as" in said
    assert list(StudyResults(study, root).frame["status"]) == ["finished"]
    (aside,) = root.glob("*/*.damaged-1")
    assert (aside / name).read_text() == "{half a l\n"


def test_a_damaged_checkpoint_and_an_empty_directory(
    config: RunConfig, root: Path, make: Callable[..., str]
):
    study = study_of(arm("muon", config))
    make(study, keep_checkpoints=True)
    one, other = (path.parent for path in root.rglob("summary.json"))
    (one / "summary.json").unlink()
    for weights in one.rglob("model.safetensors"):
        weights.write_bytes(b"short")
    for path in sorted(other.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert make(study).count("set aside") == 1
    assert list(StudyResults(study, root).frame["status"]) == ["finished"] * 2


def test_a_record_that_is_damaged_is_made_again(
    config: RunConfig, root: Path, make: Callable[..., str]
):
    study = study_of(arm("muon", config), seeds=(0,))
    make(study)
    record = folder(study, root) / "study.json"
    record.write_text("{")
    assert status(study, root).counts == {"to do": 1}
    make(study)
    assert json.loads(record.read_text())["study"] == "tiny"


# -- frames, measurements, borders -------------------------------------------------------------


def test_a_study_without_runs(config: RunConfig, root: Path):
    study = study_of(arm("muon", config, search=LEARNING_RATE), arm("p", config))
    frame = StudyResults(study, root).frame
    assert list(frame["status"]) == ["missing"] * 4
    assert frame["val/loss"].dropna().empty
    assert judge_study(study, root)[0].verdict == "inconclusive"
    assert status(study, root).counts == {"to do": 10}
    assert StudyResults(study, root).curves == {}


def test_a_measurement_is_made_once(root: Path):
    calls: list[int] = []

    def measure(context: Context) -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"status": ["finished"], "seconds": [1.5]})

    measurement = Measurement(
        name="timed", scale="nano", question="How long?", claims=(), measure=measure, judge=judge
    )
    assert judge_study(measurement, root) == []
    for _ in range(2):
        run_measurement(measurement, root, console=Console(quiet=True))
    assert calls == [1]
    assert status(measurement, root).counts == {"finished": 1}
    assert judge_study(measurement, root)[0].verdict == "reproduced"


@pytest.mark.parametrize(
    ("text", "message"),
    [("seconds\n1.5\n", "lack 'status': an earlier version"), ("", "delete it to measure again")],
)
def test_rows_of_another_version_and_damaged_ones(root: Path, text: str, message: str):
    measurement = Measurement(
        name="timed",
        scale="nano",
        question="How long?",
        claims=(),
        measure=lambda context: pd.DataFrame(),
        judge=judge,
    )
    (root / "timed.nano").mkdir(parents=True)
    (root / "timed.nano" / "measurement.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        judge_study(measurement, root)


def test_resources_out_of_range():
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        Resources(workers=0)
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        Resources(threads=0)


def test_two_splits_are_never_compared():
    rows = [
        {"arm": arm, "protocol": "honest", "status": "finished", "val/loss": 3.0, "test/loss": loss}
        for arm, loss in (("a", 2.9), ("b", 2.8))
    ]
    assert list(with_headline(pd.DataFrame(rows))["loss"]) == [2.9, 2.8]
    rows[1]["test/loss"] = math.nan  # a run of before: it has not read it
    mixed = with_headline(pd.DataFrame(rows))
    assert list(mixed["loss"]) == [3.0, 3.0]
    assert set(mixed["split"]) == {"validation"}
    diverged = {"arm": "b", "protocol": "honest", "status": "failed", "val/loss": math.inf}
    tested = with_headline(pd.DataFrame([rows[0], diverged]))
    assert list(tested["loss"]) == [2.9, math.inf]
    assert set(tested["split"]) == {"test"}
