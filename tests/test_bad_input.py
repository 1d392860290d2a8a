import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import (
    TINY,
    Capture,
    Train,
    complaint,
    directories,
    interrupt_at,
    only_run,
    write_text,
)

from muonlab.cli import run
from muonlab.data import TokenData
from muonlab.runs import RunDirectory

BAD_OVERRIDES = [
    ("train.stepz=3", "train.stepz: unknown field; did you mean steps?"),
    ("train.steps=many", 'train.steps is "many"; it must be a valid integer'),
    ("model.attention.num_heads=3", "num_heads is 3; model width 32 must be an even multiple"),
    ("model.ffn.top_k=5", "top_k is 5; it must be from 1 to num_experts 4"),
    ("train.sequence_length=65", "sequence_length is 65; it must not exceed model.max_length 64"),
    ("train.batch_size=100000", "the training split is too small for a batch of 100000 × 32"),
    ("name=../../up", "name is '../../up'; it must be letters"),
    ("model.vocab_size=257", "model.vocab_size is 257; the tokenizer has "),
    ("data.source.path=nowhere.txt", "nowhere.txt: No such file or directory"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), BAD_OVERRIDES, ids=[text for text, _ in BAD_OVERRIDES]
)
def test_bad_overrides(
    train_tiny: Train, tmp_path: Path, capsys: Capture, overrides: str, message: str
) -> None:
    assert train_tiny(*overrides.split()) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt: this file is empty"),
        ("binary.txt", b"\x7fELF\x00\x01" * 9, "binary.txt: binary data (a zero byte at byte 4)"),
        ("latin.txt", "naïve\n".encode("latin-1") * 9, "latin.txt: not UTF-8 at byte 2"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "a.jsonl, line 2: no field 'text'"),
        ("b.jsonl", b'{"text": "a"}\nb\n', "b.jsonl, line 2: not JSON"),
        ("small.txt", b"One. Two.\n\n" * 300, "split"),
        ("program.exe", b"MZ", "program.exe: unknown kind of file, expected .txt"),
    ],
)
def test_bad_files(
    train_tiny: Train, tmp_path: Path, capsys: Capture, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert train_tiny(f"data.source.path={tmp_path / name}", "train.sequence_length=64") == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "runs").exists()


def test_interrupted_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the connection broke off\nmore")

    monkeypatch.setattr("datasets.load_dataset", fail)
    arguments = ["train", "nano", "data.source.kind=hub", "data.source.name=some/where"]
    assert run([*arguments, *directories(tmp_path, tmp_path / "cache")]) == 2
    assert "data set some/where: ConnectionError: the connection broke off" in complaint(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [None, b"{}", b"\xff\x00"])
def test_bad_tokenizers(tmp_path: Path, text: Path, capsys: Capture, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    overrides = [f"data.source.path={text}", "data.source.kind=local"]
    overrides += ["data.tokenizer.kind=file", f"data.tokenizer.path={path}"]
    assert run(["train", "nano", *overrides, *directories(tmp_path, tmp_path / "cache")]) == 2
    assert f"{path}: " in complaint(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def interrupted(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> RunDirectory:
    """A run that Ctrl-C stopped after its third step."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert train_tiny() == 130
    assert "stopped after step 3; `muonlab resume" in complaint(capsys)
    return only_run(tmp_path)


def damage_config(directory: RunDirectory) -> None:
    path = directory.path / "config.json"
    values = json.loads(path.read_text())
    values["model"]["ffn"]["hidden_dim"] = 48
    path.write_text(json.dumps(values))


def damage_manifest(directory: RunDirectory) -> None:
    (directory.path / "manifest.json").write_text("{}")


def damage_weights(directory: RunDirectory) -> None:
    os.truncate(directory.checkpoints / "step-00000003" / "model.safetensors", 1000)


def damage_optimizer(directory: RunDirectory) -> None:
    path = directory.checkpoints / "step-00000003" / "optimizer.pt"
    path.write_bytes(b"?" * path.stat().st_size)


def damage_metrics(directory: RunDirectory) -> None:
    (directory.path / "metrics.jsonl").write_text("?\n?\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config, "config.json was changed after the run began"),
        (damage_manifest, "manifest.json is damaged: it has no 'fingerprint'"),
        (damage_weights, "model.safetensors is damaged: 1000 bytes"),
        (damage_optimizer, "step-00000003 is damaged or no checkpoint: "),
        (damage_metrics, "metrics.jsonl, line 1: not JSON"),
    ],
)
def test_resuming_what_is_damaged(
    interrupted: RunDirectory,
    cache_dir: Path,
    capsys: Capture,
    damage: Callable[[RunDirectory], None],
    message: str,
) -> None:
    damage(interrupted)
    before = {path: path.read_bytes() for path in interrupted.path.rglob("*") if path.is_file()}
    assert run(["resume", str(interrupted.path), "--cache-dir", str(cache_dir)]) == 2
    assert message in complaint(capsys)
    after = {path: path.read_bytes() for path in interrupted.path.rglob("*") if path.is_file()}
    assert before == after


def test_other_text_behind_the_same_name(
    train_tiny: Train, tmp_path: Path, cache_dir: Path, capsys: Capture
) -> None:
    own = write_text(tmp_path / "own.txt", 20_000)
    assert train_tiny(f"data.source.path={own}", "train.steps=2") == 0
    directory = only_run(tmp_path)
    (directory.path / "summary.json").unlink()
    write_text(own, 25_000)
    for command in ("resume", "eval"):
        capsys.readouterr()
        assert run([command, str(directory.path), "--cache-dir", str(cache_dir)]) == 2
        assert "was trained on other data than the corpus now holds" in complaint(capsys)


def test_no_space(
    train_tiny: Train,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        patch.setattr("torch.save", fill)
        assert train_tiny() == 2
    assert "No space left on device" in complaint(capsys)
    directory = only_run(tmp_path)
    assert directory.checkpoint_steps() == []
    assert directory.status() == "started"


NO_PROC = pytest.mark.skipif(not Path("/proc").exists(), reason="this system has no /proc")


@pytest.mark.parametrize("name", ["a file", pytest.param("proc", marks=NO_PROC)])
def test_places_that_cannot_be_written(
    tmp_path: Path, text: Path, cache_dir: Path, capsys: Capture, name: str
) -> None:
    place = Path("/proc/muonlab") if name == "proc" else tmp_path / "file"
    if name == "a file":
        place.write_text("")
    overrides = [*TINY, f"data.source.path={text}"]
    for runs_dir, cache in ((place, cache_dir), (tmp_path / "runs", place)):
        arguments = ["--runs-dir", str(runs_dir), "--cache-dir", str(cache)]
        assert run(["train", "nano", *overrides, *arguments]) == 2
        assert str(place) in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nanoo"], "recipe 'nanoo' is unknown; did you mean nano? legal: nano, small"),
        (["inspect", "nanoo"], "recipe 'nanoo' is unknown; did you mean nano? legal: nano, small"),
        (["resume", "nowhere"], "nowhere is no run directory: it has no config.json"),
        (["eval", "nowhere"], "nowhere is no run directory: it has no config.json"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere is no run directory"),
        (["export", "nowhere"], "nowhere is no run directory: it has no config.json"),
        (["demo", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["demo", "--data", "nowhere.txt"], "nowhere.txt: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--step", "5"], "has no checkpoint of step 5; it has [2, 4, 6]"),
        (["eval", "--data", "a.txt", "--data", "b.txt"], "eval measures one text at a time"),
        (["generate", "--prompt", "a", "--temperature", "-1"], "temperature is -1.0; it must be"),
        (["generate", "--prompt", "a", "--max-new-tokens", "999"], "was trained for 64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_requests_to_a_trained_model(
    finished_run: RunDirectory,
    cache_dir: Path,
    capsys: Capture,
    arguments: list[str],
    message: str,
) -> None:
    command, *options = arguments
    cache = ["--cache-dir", str(cache_dir)]
    assert run([command, str(finished_run.path), *cache, *options]) == 2
    assert message in complaint(capsys)


def test_a_run_that_blows_up_fails_with_1(
    train_tiny: Train, tmp_path: Path, capsys: Capture
) -> None:
    assert train_tiny("optimizer.lr=1e30", "learning_rate.warmup=0") == 1
    assert "a lower learning rate" in complaint(capsys)
    assert only_run(tmp_path).status() in ("started", "interrupted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a.txt=0", "--data", "b.txt=1"], "weights.0 is 0.0; it must be positive"),
        (["--data", "a.txt=-1", "--data", "b.txt=1"], "weights.0 is -1.0; it must be positive"),
        (["--data", "a.txt=1", "--data", "b.txt"], "--data b.txt has no weight; give every text"),
        (["--data", "a.txt=1"], "sources holds 1; a mixture is of at least 2"),
        (["--data", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--data", "-"], "standard input: it is empty, expected text"),
        (["--data", "rows.jsonl"], "no field 'text', found body; data.source.text_field=NAME"),
        (["--data", "pipe.txt"], "pipe.txt: a pipe, a device or a directory, expected a regular"),
        (["--data", "wide.txt"], "wide.txt: this is UTF-16, expected UTF-8; convert it: iconv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", [["train", "nano"], ["data", "prepare", "nano"]])
def test_bad_data_arguments(
    command: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("some text")
    Path("rows.jsonl").write_text('{"body": "a"}\n')
    os.mkfifo("pipe.txt")
    Path("wide.txt").write_text("text", encoding="utf-16")
    assert run([*command, *arguments, "--cache-dir", str(tmp_path / "cache")]) == 2
    assert message in complaint(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command 'trian' is unknown; did you mean train? legal: demo, data"),
        (["train", "smal"], "recipe 'smal' is unknown; did you mean small? legal: nano"),
        (["train", "nano", "lr=0.1"], "lr: unknown field; did you mean optimizer.lr?"),
        (["study", "show", "p1-computer"], "did you mean p1-compute? legal: "),
        (["train", "other.json"], "other.json: vocab_size: unknown field; "),
        (["train", "recipes.py:tiny"], "recipes.py, line 1: '(' was never closed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nearly_right(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"vocab_size": 3}')
    Path("recipes.py").write_text("def tiny(\n")
    assert run(arguments) == 2
    assert message in complaint(capsys)
