import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    EVERYTHING_RANDOM,
    Killed,
    MakeConfig,
    assert_same,
    assert_same_end,
    before_step,
    die_before_step,
    train_in,
)

from muonlab.data import TokenData
from muonlab.errors import InterruptedRun
from muonlab.model import LanguageModel
from muonlab.runs import RunBusyError, RunDirectory, RunError
from muonlab.train import (
    train,
)

VARIANTS = {
    "muon": (),
    "muon, bf16, everything random": ("train.dtype=bf16", *EVERYTHING_RANDOM),
    "muon, normuon, mla, qk-clip": (
        "optimizer.second_moment=normuon",
        "optimizer.qk_clip=0.001",
        "model.attention.kind=mla",
    ),
    "adamw": ("optimizer.kind=adamw",),
    "adamw, bf16, everything random": (
        "optimizer.kind=adamw",
        "train.dtype=bf16",
        *EVERYTHING_RANDOM,
    ),
    "muon, dense, untied, wsd": (
        "model.ffn.kind=dense",
        "model.tie_head=false",
        "learning_rate.kind=wsd",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_equals_uninterrupted(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
) -> None:
    config = make_config(*VARIANTS[variant])
    whole = train_in(tmp_path / "whole", config, tiny_data)

    def trouble(step: int, model: LanguageModel) -> None:
        if step == 2:  # is finished, then a checkpoint is written
            os.kill(os.getpid(), signal.SIGINT)
        if step == 5:  # one step after the checkpoint of step 4
            raise Killed

    parts = RunDirectory.place(tmp_path / "parts", config)
    with monkeypatch.context() as patch:
        before_step(patch, trouble)
        with pytest.raises(InterruptedRun, match=r"stopped after step 3; `muonlab resume .*` goes"):
            train(config, parts, tiny_data, progress=False)
        assert parts.status() == "interrupted"
        assert parts.checkpoint_steps() == [2, 3]
        torch.manual_seed(1234)  # whatever else the process has drawn
        with pytest.raises(Killed):
            train(config, parts, tiny_data, progress=False)
    with (parts.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train')  # the crash cut a row
    assert parts.checkpoint_steps() == [3, 4]
    train(config, parts, tiny_data, progress=False)
    assert parts.status() == "finished"
    assert_same_end(whole, parts)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    make_config: MakeConfig,
    tiny_data: TokenData,
    tmp_path: Path,
    finished_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config("train.keep_checkpoints=9")
    run = RunDirectory.place(tmp_path, config)

    with monkeypatch.context() as patch:
        die_before_step(patch, 1)
        with pytest.raises(Killed):
            train(config, run, tiny_data, progress=False)
    assert run.status() == "started"
    train(config, run, tiny_data, progress=False)
    assert_same_end(finished_run, run)


def test_training_a_finished_run_changes_nothing(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path
) -> None:
    config = make_config("train.steps=2")
    run = train_in(tmp_path, config, tiny_data)
    before = run.load_checkpoint(), run.metrics()
    train(config, run, tiny_data, progress=False)
    assert_same(before[0].model, run.load_checkpoint().model)
    assert before[1] == run.metrics()


def test_what_cannot_be_resumed(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("train.steps=2")
    run = train_in(tmp_path, config, tiny_data)
    with pytest.raises(RunError, match="is the run of another config"):
        train(replace(config, seed=1), run, tiny_data, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_data, "data_hash", "other")
        with pytest.raises(RunError, match="was trained on other data"):
            train(config, run, tiny_data, progress=False)
    with run.lock(), pytest.raises(RunBusyError, match="is in use by another process"):
        train(config, run, tiny_data, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "optimizer.kind=adamw",
            "this optimizer cannot continue it: .* algorithm 'adamw'",
        ),
        ("model.num_layers=1", r"it lacks blocks\.1\.attention\.out\.weight"),
        ("model.num_layers=3", r"it has blocks\.2\.attention\.out\.weight, which the model lacks"),
        ("model.ffn.hidden_dim=32", r"blocks\.0\.ffn\.expand is \(4, 64, 32\), the model's is"),
    ],
)
def test_a_checkpoint_of_another_config(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path: Path, change: str, message: str
) -> None:
    config = make_config("train.steps=1")
    own = train_in(tmp_path, config, tiny_data)
    foreign = train_in(tmp_path, make_config("train.steps=1", change), tiny_data)
    shutil.rmtree(own.checkpoints)
    foreign.checkpoints.rename(own.checkpoints)
    with pytest.raises(RunError, match=message):
        train(config, own, tiny_data, progress=False)
