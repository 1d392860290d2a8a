"""A run of a tiny model on a tiny text: seconds in all."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import muonlab.train
from muonlab.config import RunConfig
from muonlab.data import TokenData
from muonlab.model import LanguageModel
from muonlab.runs import RunDirectory
from muonlab.train import accumulate_gradients, train

MakeConfig = Callable[..., RunConfig]
Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]
TINY = (
    "model.vocab_size=300",
    "data.source.kind=local",
    "data.tokenizer.vocab_size=300",
    "data.max_documents=null",
    "data.split.validation_fraction=0.15",
    "data.split.test_fraction=0.15",
    "train.steps=6",
    "train.batch_size=4",
    "train.sequence_length=32",
    "train.evaluate_every=3",
    "train.evaluate_batches=2",
    "train.checkpoint_every=2",
    "train.dtype=fp32",
)


OF_TIME = {"time", "train/step_seconds", "train/optimizer_seconds", "train/tokens_per_second"}


EVERYTHING_RANDOM = (
    "model.dropout=0.1",
    "model.ffn.router_noise=0.5",
    "model.ffn.balancing=bias",
    "model.ffn.bias_rate=0.01",
    "train.micro_batch_size=2",
)


def write_text(path: Path, num_words: int) -> Path:
    """Invented sentences, a blank line after each."""
    generator = random.Random(0)
    words = ["the", "muon", "an", "expert", "router", "gate", "learns", "loss", "token", "of"]
    text = "".join(
        generator.choice(words) + (".\n\n" if index % 15 == 14 else " ")
        for index in range(num_words)
    )
    path.write_text(text, encoding="utf-8")
    return path


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal bit for bit, through containers and tensors."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert one == other, where


def assert_same_end(one: RunDirectory, other: RunDirectory) -> None:
    """The same weights, optimizer state, metrics and summary; times are free."""
    first, second = one.load_checkpoint(), other.load_checkpoint()
    assert first.step == second.step
    assert_same(first.model, second.model)
    assert_same(first.optimizer, second.optimizer)
    assert_same(first.state.final, second.state.final)
    assert first.state.skipped_steps == second.state.skipped_steps
    assert without_times(one.metrics()) == without_times(other.metrics())
    for key in ("steps", "tokens", "optimizer_state_bytes", "val/loss", "val/accuracy"):
        assert one.summary()[key] == other.summary()[key]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row.keys() - OF_TIME} for row in rows]


def train_in(path: Path, config: RunConfig, data: TokenData) -> RunDirectory:
    run = RunDirectory.place(path, config)
    train(config, run, data, progress=False)
    return run


def before_step(
    patch: pytest.MonkeyPatch, act: Callable[[int, LanguageModel], None], *, after: bool = False
) -> None:
    """Call ``act(step, model)`` before a step's gradients are computed, or after."""

    def wrapped(
        config: RunConfig, model: LanguageModel, batch: torch.Tensor, step: int
    ) -> torch.Tensor:
        if not after:
            act(step, model)
        loss = accumulate_gradients(config, model, batch, step)
        if after:
            act(step, model)
        return loss

    patch.setattr(muonlab.train, "accumulate_gradients", wrapped)


class Killed(BaseException):
    """The process ends here."""


def die_before_step(patch: pytest.MonkeyPatch, fatal: int) -> None:
    def act(step: int, model: LanguageModel) -> None:
        if step == fatal:
            raise Killed

    before_step(patch, act)


def directories(tmp_path: Path, cache_dir: Path) -> list[str]:
    return ["--runs-dir", str(tmp_path / "runs"), "--cache-dir", str(cache_dir)]


def only_run(tmp_path: Path) -> RunDirectory:
    (config,) = (tmp_path / "runs").rglob("config.json")
    return RunDirectory(config.parent)


def complaint(capsys: Capture) -> str:
    """The last line on standard error, which says it all; progress may stand before it."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    *_, line = error.splitlines()
    assert line.startswith("muonlab: "), error
    return line


def interrupt_at(patch: pytest.MonkeyPatch, fatal: int) -> None:
    def wrapped(
        config: RunConfig, model: LanguageModel, batch: torch.Tensor, step: int
    ) -> torch.Tensor:
        if step == fatal:
            os.kill(os.getpid(), signal.SIGINT)
        return accumulate_gradients(config, model, batch, step)

    patch.setattr(muonlab.train, "accumulate_gradients", wrapped)
