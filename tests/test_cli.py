import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_runs import (
    TINY,
    Capture,
    MakeConfig,
    Train,
    complaint,
    directories,
    interrupt_at,
    only_run,
)

from muonlab.cli import run
from muonlab.config import from_json, override
from muonlab.data import TokenData
from muonlab.evaluate import evaluate
from muonlab.model import native
from muonlab.recipes import RECIPES, recipe
from muonlab.runs import RunDirectory, load_weights

COMMANDS = {
    (): "Train, compare and run small Mixture-of-Experts language models.",
    ("demo",): "Train a pair of small MoE models",
    ("data",): "prepare",
    ("data", "prepare"): "data.source.kind=local",
    ("inspect",): "Print a recipe's parameters",
    ("train",): "Ctrl-C writes a checkpoint",
    ("resume",): "Continue an interrupted run",
    ("runs",): "List runs with their status",
    ("eval",): "bits per byte",
    ("generate",): "--prompt",
    ("export",): "transformers",
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: Sequence[str], capsys: Capture) -> None:
    assert run([*command, "--help"]) == 0
    assert COMMANDS[tuple(command)] in " ".join(capsys.readouterr().out.split())


def test_no_arguments_is_help(capsys: Capture) -> None:
    assert run([]) == 0
    assert "generate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["train"], ["train", "nano", "--bogus"], ["generate", "x"], ["data"], ["resume"]],
    ids=" ".join,
)
def test_arguments_that_do_not_parse(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "--help" in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_train_then_everything_else(
    train_tiny: Train,
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    cache_dir: Path,
    capsys: Capture,
) -> None:
    assert train_tiny() == 0
    captured = capsys.readouterr()
    assert "validation loss" in captured.out
    assert "step 0: validation loss" in captured.err
    directory = only_run(tmp_path)
    assert directory.config() == make_config()
    assert directory.status() == "finished"
    path, cache = str(directory.path), ("--cache-dir", str(cache_dir))

    model = make_config().model.build(1)
    load_weights(model, directory.load_checkpoint().model, directory.path)
    for split in ("validation", "test"):
        assert run(["eval", path, "--split", split, *cache]) == 0
        rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
        expected = evaluate(model, tiny_data, split, batch_size=4, sequence_length=32)
        assert {name: float(value) for name, value in rows.items()} == pytest.approx(
            expected, abs=2e-4
        )

    options = ("--max-new-tokens", "8", "--seed", "3", *cache)
    assert run(["generate", path, "--prompt", "the muon", *options]) == 0
    alone = capsys.readouterr().out
    assert alone.startswith("the muon")
    if shutil.which("c++"):
        assert run(["generate", path, "--prompt", "the muon", *options, "--native-kernels"]) == 0
        assert native.enabled()
        native.enable(False)
        assert capsys.readouterr().out == alone
    assert run(["generate", path, "--prompt", "the muon", "a gate of", *options]) == 0
    both = capsys.readouterr().out
    assert both.startswith(alone)
    assert "\na gate of" in both

    assert run(["export", path, *cache]) == 0
    assert (directory.path / "hf" / "config.json").exists()
    capsys.readouterr()
    assert run(["runs", str(tmp_path / "runs")]) == 0
    listing = capsys.readouterr().out
    assert listing.count("finished") == 1
    assert "6/6" in listing

    assert run(["resume", path, *cache]) == 2
    assert "is finished: 6 steps" in complaint(capsys)
    assert train_tiny() == 2
    assert "holds this run already, finished; `muonlab resume" in complaint(capsys)


def test_data_prepare(text: Path, cache_dir: Path, tiny_data: TokenData, capsys: Capture) -> None:
    overrides = [*TINY, f"data.source.path={text}"]
    assert run(["data", "prepare", "nano", *overrides, "--cache-dir", str(cache_dir)]) == 0
    output = capsys.readouterr().out
    assert f"{tiny_data.num_tokens('train'):,}" in output
    assert tiny_data.data_hash[:16] in output


@pytest.mark.filterwarnings("ignore:.*causal")
def test_inspect(capsys: Capture) -> None:
    assert run(["inspect", "p2"]) == 0
    output = capsys.readouterr().out
    for figure in ("79,059,840", "36,592,512", "blocks.5.ffn.router.weight"):
        assert figure in output
    assert run(["inspect", "p2_mhla", "model.num_layers=2"]) == 0
    assert "warning: " in capsys.readouterr().out
    assert run(["inspect"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in RECIPES)
    assert run(["inspect", "p1_30m", "seed=7", "--config"]) == 0
    assert from_json(capsys.readouterr().out) == override(recipe("p1_30m"), ["seed=7"])


def test_runs_lists_damaged_directories(
    finished_run: RunDirectory, tmp_path: Path, capsys: Capture
) -> None:
    for number, name in enumerate(("config.json", "manifest.json", "metrics.jsonl")):
        copy = tmp_path / f"run{number}"
        copy.mkdir()
        for file in ("config.json", "manifest.json", "metrics.jsonl", "summary.json"):
            (copy / file).write_bytes((finished_run.path / file).read_bytes())
        (copy / name).write_bytes(b"\xff{\n\n")
    assert run(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("damaged" in line.split() for line in lines) == 3
    assert run(["runs", str(tmp_path / "nowhere")]) == 0
    assert "no runs below" in capsys.readouterr().out


def test_demo_interrupted_and_again(
    tmp_path: Path, text: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("own.txt")
    own.write_bytes(text.read_bytes())
    arguments = ["demo", "--data", str(own), "--steps", "2", *directories(tmp_path, cache_dir)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0)
        assert run(arguments) == 130
    assert "stopped after step 1" in complaint(capsys)
    assert run(arguments) == 0
    output = capsys.readouterr().out
    assert "written by the adamw model" in output
    page = tmp_path / "runs" / "demo" / "report"
    assert list(page.glob("*.html"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("both runs are finished")

    monkeypatch.setattr("muonlab.train.train", refuse)
    assert run(arguments) == 0
