import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import (
    Killed,
    MakeConfig,
    die_before_step,
    train_in,
)

from muonlab.config import ConfigError
from muonlab.data import TokenData
from muonlab.runs import RunDirectory
from muonlab.train import (
    train,
)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, float]]]:
    """A stand-in for the wandb package that keeps what it is sent."""
    sent: list[tuple[int, dict[str, float]]] = []

    class Session:
        def __enter__(self) -> "Session":
            return self

        def __exit__(self, *_: object) -> None:
            sent.append((-1, {}))

        def log(self, row: dict[str, float], step: int) -> None:
            sent.append((step, row))

    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = lambda **options: Session()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return sent


def test_wandb_is_sent_every_row(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    wandb: list[tuple[int, dict[str, float]]],
) -> None:
    run = train_in(tmp_path, make_config('train.trackers=["wandb"]', "train.steps=2"), tiny_data)
    assert wandb.pop() == (-1, {})  # closed
    stamps = {"step", "tokens", "time"}
    rows = [(row["step"], {k: row[k] for k in row.keys() - stamps}) for row in run.metrics()]
    assert rows == wandb


def test_tensorboard_mirrors_every_row_of_a_resumed_run(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    config = make_config('train.trackers=["tensorboard"]')
    run = RunDirectory.place(tmp_path, config)

    with monkeypatch.context() as patch:
        die_before_step(patch, 3)
        with pytest.raises(Killed):
            train(config, run, tiny_data, progress=False)
    train(config, run, tiny_data, progress=False)
    events = event_accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "val/loss", "moe/load_cv"):
        mirrored = [(event.step, event.value) for event in events.Scalars(name)]
        rows = [(row["step"], row[name]) for row in run.metrics() if name in row]
        assert mirrored == [(step, pytest.approx(value)) for step, value in rows]


def test_a_mirror_that_is_not_installed(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = make_config('train.trackers=["wandb"]')
    run = RunDirectory.place(tmp_path, config)
    with pytest.raises(ConfigError, match=r"train.trackers: wandb is not installed; pip install"):
        train(config, run, tiny_data, progress=False)
    assert not run.path.exists()
