"""A run of a tiny model on a tiny text: seconds in all."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from muonlab.config import RunConfig, override
from muonlab.data import TokenData
from muonlab.recipes import nano
from muonlab.runs import RunDirectory
from muonlab.train import train

MakeConfig = Callable[..., RunConfig]
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


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "invented.txt", 30_000)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def make_config(text: Path) -> MakeConfig:
    """The tiny config with overrides."""
    return lambda *overrides: override(nano(), [*TINY, f"data.source.path={text}", *overrides])


@pytest.fixture(scope="session")
def tiny_data(make_config: MakeConfig, cache_dir: Path) -> TokenData:
    return make_config().data.prepare(cache_dir, progress=False)


@pytest.fixture(scope="session")
def finished_run(
    make_config: MakeConfig, tiny_data: TokenData, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A whole run of the tiny config; do not write to it."""
    config = make_config("train.keep_checkpoints=9")
    run = RunDirectory.place(tmp_path_factory.mktemp("runs"), config)
    train(config, run, tiny_data, progress=False)
    return run
