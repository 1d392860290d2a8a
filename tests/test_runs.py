import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_runs import Killed
from torch import nn

from muonlab.checkpoints import RunState, load_weights
from muonlab.config import RunConfig, from_json, to_json
from muonlab.files import write_whole
from muonlab.optim import Muon
from muonlab.recipes import nano
from muonlab.runs import RunBusyError, RunDirectory, RunError, find_runs

MANIFEST = {"data_hash": "d", "warnings": []}


def manifest_of(config: RunConfig) -> dict[str, Any]:
    return MANIFEST | {"fingerprint": config.fingerprint()}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.place(tmp_path, nano())
    run.create(nano(), manifest_of(nano()))
    return run


class Trained:
    """A model of two tied weights and its optimizer, after one update."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        first, second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        second.weight = first.weight
        self.model = nn.Sequential(first, second)
        self.optimizer = Muon([first.weight], lr=0.1)
        self.model(torch.randn(3, 6)).square().mean().backward()
        self.optimizer.step()

    def save(self, run: RunDirectory, step: int, keep: int = 2) -> None:
        state = RunState(dtype="fp32", seconds=float(step))
        run.save_checkpoint(step, self.model, self.optimizer, state, keep)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_a_run_lies_where_its_config_says(run: RunDirectory, tmp_path: Path) -> None:
    assert run.path == tmp_path / "nano" / f"muon-s0-{nano().fingerprint()[:8]}"
    assert run.exists()
    assert run.config() == nano()
    assert from_json((run.path / "config.json").read_text()) == nano()
    assert run.manifest()["data_hash"] == "d"
    assert not RunDirectory.place(tmp_path, replace(nano(), seed=1)).exists()


def test_status(run: RunDirectory) -> None:
    assert run.status() == "started"
    Trained().save(run, 1)
    assert run.status() == "interrupted"
    with run.lock():
        assert run.status() == "running"
    run.finish({"steps": 1})
    assert run.status() == "finished"
    assert run.summary() == {"steps": 1}


def test_status_of_a_directory_that_may_only_be_read(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(run.path / ".lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert run.status() == "started"
    with pytest.raises(RunError, match=r"cannot write .*lock: Permission denied"), run.lock():
        pass


def test_check_is_of(run: RunDirectory) -> None:
    run.check_is_of(nano(), "d")
    with pytest.raises(RunError, match="is the run of another config"):
        run.check_is_of(replace(nano(), seed=1), "d")
    with pytest.raises(RunError, match="was trained on other data than the corpus now holds"):
        run.check_is_of(nano(), "e")
    (run.path / "config.json").write_text(to_json(replace(nano(), seed=1)))
    with pytest.raises(RunError, match=r"config.json was changed after the run began"):
        run.check_is_of(replace(nano(), seed=1), "d")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"seed": 1', "config.json: not JSON"),
        ("config.json", b"\xff\xfe", "config.json: 'utf-8' codec can't decode"),
        ("config.json", b'{"sead": 1}', "config.json: sead: unknown field"),
        ("manifest.json", b"", "manifest.json is damaged: Expecting value"),
        ("manifest.json", b"[]", "manifest.json is damaged: it has no 'fingerprint'"),
        ("manifest.json", b'{"fingerprint": ""}', "manifest.json is damaged: it has no 'data_"),
    ],
)
def test_damaged_descriptions(run: RunDirectory, name: str, content: bytes, message: str) -> None:
    (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        run.check_is_of(nano(), "d")


def test_absent_descriptions(run: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"summary.json does not exist"):
        run.summary()
    with pytest.raises(RunError, match=r"is no run directory: it has no config\.json"):
        RunDirectory(run.path.parent).config()


def test_find_runs(run: RunDirectory, tmp_path: Path) -> None:
    (run.path / "hf").mkdir()
    (run.path / "hf" / "config.json").write_text("{}")  # an export is no run
    other = RunDirectory(tmp_path / "a" / "b")
    other.create(nano(), manifest_of(nano()))
    assert [found.path for found in find_runs(tmp_path)] == [other.path, run.path]
    assert find_runs(tmp_path / "nowhere") == []


# -- metrics --------------------------------------------------------------------------------------


def test_metrics_come_back(run: RunDirectory) -> None:
    assert run.metrics() == []
    rows = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(4)]
    for row in rows:
        run.append_metrics(row)
    run.append_metrics({"step": 4, "train/loss": float("nan"), "x": float("inf")})
    assert run.metrics() == [*rows, {"step": 4, "train/loss": None, "x": None}]
    run.truncate_rows(2)
    assert run.metrics() == rows[:3]
    run.truncate_rows(0)  # a run without a checkpoint begins anew
    assert run.metrics() == []


@pytest.mark.parametrize("cut", [b'{"step": 1, "tr', b"{", b"\x00\x00\x00", b'{"a": "\xc3'])
def test_a_half_written_last_row_is_left_out(run: RunDirectory, cut: bytes) -> None:
    run.append_metrics({"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(cut)
    assert run.metrics() == [{"step": 1}]
    run.truncate_rows(1)
    run.append_metrics({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "line 2: not JSON"),
        (b"\xff\n", "line 2: not JSON"),
        (b"3\n", "line 2: no row of a run"),
        (b'{"loss": 3}\n', "line 2: no row of a run"),
    ],
)
def test_other_damage_is_named(run: RunDirectory, line: bytes, message: str) -> None:
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'{"step": 3}\n')
    with pytest.raises(RunError, match=message):
        run.metrics()


# -- checkpoints ----------------------------------------------------------------------------------


def test_checkpoint_round_trip_and_keep(run: RunDirectory) -> None:
    trained = Trained()
    for step in (1, 2, 3, 10):
        trained.save(run, step)
    assert run.checkpoint_steps() == [3, 10]
    checkpoint = run.load_checkpoint()
    assert checkpoint.step == 10
    assert checkpoint.state == RunState(dtype="fp32", seconds=10.0)
    assert set(checkpoint.model) == {"0.weight", "0.bias"}  # the tied weight once
    other = Trained(seed=1)
    load_weights(other.model, checkpoint.model, run.path)
    other.optimizer.load_state_dict(checkpoint.optimizer)
    for mine, theirs in zip(trained.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert run.load_checkpoint(3).step == 3
    with pytest.raises(RunError, match=r"has no checkpoint of step 2; it has \[3, 10\]"):
        run.load_checkpoint(2)


def test_no_checkpoint(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="has no checkpoint yet"):
        run.load_checkpoint()
    (run.checkpoints / "step-mine").mkdir()
    assert run.checkpoint_steps() == []


Failing = Callable[[pytest.MonkeyPatch], None]


def fail_with(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("os.fsync", FULL, "No space left on device"),
        ("pathlib.Path.rename", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("pathlib.Path.mkdir", PermissionError(errno.EACCES, "Permission denied"), "Permission"),
        ("pathlib.Path.write_text", FULL, "No space left on device"),
        ("torch.save", RuntimeError("PytorchStreamWriter failed\nhere"), "StreamWriter failed"),
        ("torch.save", FULL, "No space left on device"),
        (
            "safetensors.torch.save_file",
            safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
            "No space left on device",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    error: Exception,
    message: str,
) -> None:
    trained = Trained()
    trained.save(run, 1, keep=1)
    before = contents(run.path)
    with monkeypatch.context() as patch:
        patch.setattr(target, fail_with(error))
        with pytest.raises(RunError, match=message) as caught:
            trained.save(run, 2, keep=1)
    assert "\n" not in str(caught.value)
    assert contents(run.path) == before
    assert run.load_checkpoint().step == 1
    trained.save(run, 2, keep=1)
    assert run.checkpoint_steps() == [2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_is_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def open_full(path: Path, *arguments: Any, **options: Any) -> Any:
        full = path.name == "optimizer.pt" and "w" in arguments[0]
        return real_open(Path("/dev/full") if full else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(RunError, match="No space left on device"):
        Trained().save(run, 1)
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("target", ["os.fsync", "pathlib.Path.rename", "torch.save"])
def test_a_process_killed_while_it_writes(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    trained = Trained()
    trained.save(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(target, fail_with(Killed()))  # type: ignore[arg-type]
        with pytest.raises(Killed):
            trained.save(run, 2)
    assert run.checkpoint_steps() == [1]
    trained.save(run, 3)
    assert run.checkpoint_steps() == [1, 3]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step-00000001",
        "step-00000003",
    ]


def test_a_process_killed_while_it_deletes(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained()
    trained.save(run, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", fail_with(Killed()))  # type: ignore[arg-type]
        with pytest.raises(Killed):
            trained.save(run, 2, keep=1)
    assert run.checkpoint_steps() == [2]  # half a directory does not count
    trained.save(run, 3, keep=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003"]


@pytest.fixture
def checkpoint(run: RunDirectory) -> Iterator[Path]:
    Trained().save(run, 1)
    yield run.checkpoints / "step-00000001"
    with pytest.raises(RunError) as caught:
        run.load_checkpoint()
    assert "\n" not in str(caught.value)
    assert "step-00000001" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("size", [0, 20, -1])
def test_truncated(checkpoint: Path, name: str, size: int) -> None:
    file = checkpoint / name
    os.truncate(file, size if size >= 0 else file.stat().st_size - 3)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_missing(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_overwritten(checkpoint: Path, name: str) -> None:
    file = checkpoint / name
    file.write_bytes(b"\x93NUMPY" * (file.stat().st_size // 6) + b"\0" * (file.stat().st_size % 6))


@pytest.mark.parametrize("facts", [[], {}, {"bytes": {}}, {"step": 1, "bytes": {}, "state": {}}])
def test_foreign_state(checkpoint: Path, facts: Any) -> None:
    (checkpoint / "state.json").write_text(json.dumps(facts))


def test_pickles_are_never_run(checkpoint: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (shutil.rmtree, (str(checkpoint),))

    torch.save(Bomb(), checkpoint / "optimizer.pt")
    facts = json.loads((checkpoint / "state.json").read_text())
    facts["bytes"]["optimizer.pt"] = (checkpoint / "optimizer.pt").stat().st_size
    (checkpoint / "state.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, "it lacks 0.weight, which the model has"),
        ({"extra": torch.zeros(1)}, "it has extra, which the model lacks"),
        ({"0.bias": torch.zeros(7)}, r"0.bias is \(7,\), the model's is \(6,\)"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, torch.Tensor | None], message: str) -> None:
    model = Trained().model
    before = [parameter.clone() for parameter in model.parameters()]
    weights = {"0.weight": torch.zeros(6, 6), "0.bias": torch.zeros(6)} | change
    fitting = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(RunError, match=f"here: {message}"):
        load_weights(model, fitting, Path("here"))
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


# -- files and locks ------------------------------------------------------------------------------


def test_write_whole_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    for target in ("os.fsync", "pathlib.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail_with(FULL))
            with pytest.raises(OSError, match="No space"):
                write_whole(path, "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_full_disk_while_appending(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.open", fail_with(FULL))
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device"):
        run.append_metrics({"step": 1})


def test_one_process_at_a_time(run: RunDirectory) -> None:
    program = (
        "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(run.path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert run.status() == "running"
        with pytest.raises(RunBusyError, match="is in use by another process"), run.lock():
            pass
        process.kill()  # a dead process holds nothing
    with run.lock():
        assert run.status() == "running"


def test_a_directory_that_is_no_run_has_no_status_and_gets_no_lock(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "typo"):
        with pytest.raises(RunError, match="is no run directory: it has no config"):
            RunDirectory(path).status()
    assert list(tmp_path.iterdir()) == []
