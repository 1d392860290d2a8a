"""A finished run stands on its own: its model speaks without the corpus, from any directory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import Capture, MakeConfig, complaint, write_text

import muonlab
from muonlab.cli import run
from muonlab.data import DataError, LocalConfig, TokenData
from muonlab.generate import GenerateOptions, generate, generate_text
from muonlab.places import corpora, user_cache
from muonlab.runs import RunDirectory, RunError
from muonlab.train import train


@pytest.fixture
def alone(
    make_config: MakeConfig, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunDirectory:
    """A run whose corpus is gone, seen from another directory with an empty cache."""
    own = write_text(tmp_path / "own.txt", 20_000)
    config = make_config(f"data.source.path={own}", "train.steps=2")
    directory = RunDirectory(tmp_path / "moved" / "my run")
    train(config, directory, config.data.prepare(cache_dir, progress=False), progress=False)
    own.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    return directory


def without_tokenizer(directory: RunDirectory) -> None:
    """As runs were before they kept it."""
    (directory.path / "tokenizer.json").unlink()
    manifest = directory.manifest()
    del manifest["tokenizer_sha256"]
    (directory.path / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_speaks_and_is_exported_without_its_corpus(
    alone: RunDirectory, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["generate", str(alone.path), "--prompt", "the muon", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the muon")
    assert run(["export", str(alone.path), "--to", str(tmp_path / "hf")]) == 0
    exported = (tmp_path / "hf" / "tokenizer.json").read_text()
    assert exported == (alone.path / "tokenizer.json").read_text()
    assert not (tmp_path / "empty").exists()
    assert list(Path.cwd().iterdir()) == []


def test_load_gives_what_was_trained(finished_run: RunDirectory, tiny_data: TokenData) -> None:
    loaded = muonlab.load(finished_run.path)
    assert loaded.config == finished_run.config()
    assert loaded.step == 6
    assert muonlab.load(str(finished_run.path), step=2).step == 2
    assert loaded.tokenizer.to_json() == tiny_data.tokenizer.to_json()
    assert not loaded.model.training
    saved = finished_run.load_checkpoint().model
    assert all(torch.equal(tensor, loaded.model.state_dict()[k]) for k, tensor in saved.items())
    options = GenerateOptions(max_new_tokens=3)
    assert len(list(generate_text(loaded.model, loaded.tokenizer, ["the"], options))) == 3


def test_a_run_of_before_needs_its_corpus(
    finished_run: RunDirectory, cache_dir: Path, alone: RunDirectory, tmp_path: Path
) -> None:
    copy = RunDirectory(shutil.copytree(finished_run.path, tmp_path / "copy"))
    without_tokenizer(copy)
    loaded = muonlab.load(copy.path, cache_dir=cache_dir)
    assert loaded.tokenizer.to_json() == muonlab.load(finished_run.path).tokenizer.to_json()
    without_tokenizer(alone)
    with pytest.raises(DataError, match=r"own\.txt: No such file or directory"):
        muonlab.load(alone.path, cache_dir=cache_dir)


@pytest.mark.parametrize("command", ["generate", "export", "eval"])
def test_what_was_changed_is_refused(
    alone: RunDirectory, tmp_path: Path, capsys: Capture, command: str
) -> None:
    more = ["--prompt", "the"] if command == "generate" else []
    tokenizer = alone.path / "tokenizer.json"
    text = tokenizer.read_text()
    for damage, message in (
        (lambda: tokenizer.write_text(text.replace("the", "teh")), "was changed after the run be"),
        (lambda: tokenizer.write_bytes(b"\xff"), "tokenizer.json is damaged"),
        (tokenizer.unlink, "tokenizer.json does not exist"),
    ):
        damage()
        assert run([command, str(alone.path), *more]) == 2
        assert message in complaint(capsys)
    tokenizer.write_text(text)
    config = alone.path / "config.json"
    config.write_text(config.read_text().replace('"hidden_dim": 64', '"hidden_dim": 48'))
    assert run([command, str(alone.path), *more]) == 2
    assert "config.json was changed after the run began" in complaint(capsys)


def test_a_directory_that_is_no_run_stays_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    for command in (["export"], ["eval"], ["generate", "--prompt", "a"]):
        (place := tmp_path / "empty").mkdir(exist_ok=True)
        for path in (place, tmp_path / "nowhere"):
            assert run([command[0], str(path), *command[1:]]) == 2
            assert "is no run directory: it has no config.json" in complaint(capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_one_cache_for_each_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_cache() == Path(__file__).parent.parent / ".pytest_cache/user-cache/muonlab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "muonlab"
    assert corpora() == tmp_path / "muonlab" / "corpora"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setattr(sys, "platform", "linux")
        assert user_cache() == tmp_path / "home" / ".cache" / "muonlab"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert user_cache() == tmp_path / "home" / "Library" / "Caches" / "muonlab"
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
        assert user_cache() == tmp_path / "local" / "muonlab"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache() == Path("cache")


def test_asking_for_load_alone_imports_it() -> None:
    program = (
        "import sys, muonlab; assert 'torch' not in sys.modules;"
        "assert muonlab.load.__module__ == 'muonlab.loading'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        muonlab.lod  # noqa: B018


def test_damage_to_the_manifest_is_named(alone: RunDirectory) -> None:
    (alone.path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"manifest\.json is damaged: it has no 'fingerprint'"):
        muonlab.load(alone.path)


def test_a_new_document_begins_without_a_prompt(
    finished_run: RunDirectory, capsys: Capture
) -> None:
    command = ["generate", str(finished_run.path), "--max-new-tokens", "5", "--temperature", "0"]
    assert run(command[:2]) == 0  # as many tokens as fit behind the one that begins a document
    capsys.readouterr()
    assert run(command) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    loaded = muonlab.load(finished_run.path)
    eot, options = loaded.tokenizer.eot_id, GenerateOptions(max_new_tokens=5, temperature=0)
    steps = list(generate(loaded.model, [[eot]], options, eot))
    assert text == loaded.tokenizer.decode([step[0] for step in steps if step[0] is not None])


def test_a_run_is_measured_on_a_given_text_without_its_corpus(
    alone: RunDirectory, tmp_path: Path, capsys: Capture
) -> None:
    other = write_text(tmp_path / "other.txt", 3_000)
    command = ["eval", str(alone.path), "--data", str(other)]
    assert run([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    loaded = muonlab.load(alone.path)
    documents = list(LocalConfig(path=other).documents())
    tokens = [i for text in documents for i in (*loaded.tokenizer.encode(text), 0)]
    assert loaded.tokenizer.eot_id == 0
    windows = [tokens[i : i + 33] for i in range(0, len(tokens) - 1, 32)]
    losses = []
    for window in windows:
        ids = torch.tensor([window])
        losses.append(loaded.model.score(ids[:, :-1], ids[:, 1:])[0].losses.flatten())
    assert values["text/loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)
    assert run(command) == 0
    assert "text/loss" in capsys.readouterr().out
