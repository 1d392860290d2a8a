import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
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
    write_text,
)

from muonlab.checkpoints import load_weights
from muonlab.cli import run
from muonlab.config import from_json, override
from muonlab.data import LocalConfig, MixtureConfig, TokenData
from muonlab.evaluate import evaluate
from muonlab.model import native
from muonlab.model.accounting import account
from muonlab.recipes import RECIPES, recipe
from muonlab.runs import RunDirectory

COMMANDS = {
    (): "Train, compare and run small Mixture-of-Experts language models.",
    ("demo",): "Train two small MoE models",
    ("data",): "prepare",
    ("data", "prepare"): "a.txt=0.7",
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
    [
        ["bogus"],
        ["train"],
        ["train", "nano", "--bogus"],
        ["generate", "x", "y"],
        ["data"],
        ["resume"],
    ],
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
    monkeypatch.setattr("muonlab.manifest.git_state", lambda: {"sha": "other"})
    if RunDirectory(next((tmp_path / "runs" / "demo").glob("muon-*"))).manifest()["git"]:
        assert run(arguments) == 0
        assert "2 of 2 finished runs were made by other code" in capsys.readouterr().out
    monkeypatch.setattr("muonlab.manifest.__version__", "0.0")
    monkeypatch.setattr("muonlab.manifest.git_state", dict)
    assert run(arguments) == 0
    assert "(muonlab " in capsys.readouterr().out


def texts(tmp_path: Path) -> tuple[Path, Path]:
    """A text, and rows whose text stands in another field."""
    words = write_text(tmp_path / "words.md", 12_000)
    rows = tmp_path / "rows.jsonl"
    lines = words.read_text().split("\n\n")
    rows.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines if line))
    return words, rows


def test_a_text_of_ones_own_comes_before_overrides(tmp_path: Path, capsys: Capture) -> None:
    words, rows = texts(tmp_path)
    cache = ["--cache-dir", str(tmp_path / "cache")]
    own = ["data.source.text_field=body", "data.tokenizer.vocab_size=300"]
    assert run(["data", "prepare", "nano", "--data", str(rows), *own, *cache]) == 0
    assert "note: the tokenizer has 300 tokens and the model" in capsys.readouterr().out
    assert run(["inspect", "nano", "--data", str(rows), "--config"]) == 0
    config = from_json(capsys.readouterr().out)
    assert config.data.source == LocalConfig(path=rows)
    assert config.data.max_documents is None
    around = ["inspect", "seed=3", "nano", "--data", str(rows), "train.steps=7", "--config"]
    assert run([*around, own[0]]) == 0
    split = from_json(capsys.readouterr().out)
    assert (split.seed, split.train.steps) == (3, 7)
    assert split.data.source == LocalConfig(path=rows, text_field="body")
    mixed = [f"--data={rows}=2", "--data", f"{words}=1"]
    assert run(["inspect", "nano", *mixed, "seed=3", "--config"]) == 0
    source = from_json(capsys.readouterr().out).data.source
    assert isinstance(source, MixtureConfig)
    assert source.weights == (2, 1)
    assert run(["inspect", "p1_30m", "--data", str(words), "--config"]) == 0
    data = from_json(capsys.readouterr().out).data
    assert (data.max_documents, data.max_characters_per_document, data.max_tokens) == (None,) * 3


def test_a_limit_of_the_recipe_is_said_aloud(tmp_path: Path, capsys: Capture) -> None:
    words, _ = texts(tmp_path)
    source = ["data.source.kind=local", f"data.source.path={words}"]
    split = ["data.split.validation_fraction=0.3"]
    command = ["data", "prepare", "nano", *source, *split, "--cache-dir", str(tmp_path / "cache")]
    assert run(command) == 0
    output = capsys.readouterr().out
    assert "note: the corpus is cut by data.max_documents=20; data.max_documents=null" in output


def test_training_on_a_mixture_from_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    words, rows = texts(tmp_path)
    renamed = tmp_path / "a=0.5"
    renamed.mkdir()
    for number in range(12):
        part = words.read_text()[3000 * number :][:3000]
        (renamed / f"{number}.md").write_text(part)
    data = ["--data", f"{words}=3", "--data", f"{rows}=1", "--data", f"{renamed}=2"]
    tiny = [text for text in TINY if not text.startswith("data.source")]
    field = ["data.source.sources.1.text_field=body"]
    places = directories(tmp_path, tmp_path / "cache")
    assert run(["train", "nano", *tiny, *field, *data, *places]) == 0
    directory = only_run(tmp_path)
    source = directory.config().data.source
    assert isinstance(source, MixtureConfig)
    assert source.weights == (3, 1, 2)
    assert source.sources[1:] == (
        LocalConfig(path=rows, text_field="body"),
        LocalConfig(path=renamed),
    )
    capsys.readouterr()
    assert run(["eval", str(directory.path), *places[2:]]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_training_on_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words, _ = texts(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(words.read_bytes())))
    tiny = [text for text in TINY if not text.startswith("data.source")]
    places = directories(tmp_path, tmp_path / "cache")
    assert run(["train", "nano", *tiny, "--data", "-", *places]) == 0
    source = only_run(tmp_path).config().data.source
    assert isinstance(source, LocalConfig)
    assert source.path.parent == tmp_path / "cache" / "stdin"
    assert source.path.read_bytes() == words.read_bytes()


def test_a_config_file_is_a_recipe(finished_run: RunDirectory, capsys: Capture) -> None:
    assert run(["inspect", str(finished_run.path / "config.json"), "seed=5", "--config"]) == 0
    assert from_json(capsys.readouterr().out) == replace(finished_run.config(), seed=5)


def test_inspect_as_json(capsys: Capture) -> None:
    assert run(["inspect", "small", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["parameters"] == sum(part["parameters"] for part in values["parts"])
    assert values["parameters"] == account(recipe("small").model).parameters
    assert 0 < values["muon_parameters"] < values["parameters"]
