import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from invented_corpus import write_jsonl

from muonlab.data import (
    DataConfig,
    DataError,
    DocumentSplit,
    LeakyWindowSplit,
    LocalConfig,
    SplitName,
    TokenData,
)
from muonlab.data.splits import SPLIT_NAMES


def texts_of(data: TokenData, split: SplitName) -> list[str]:
    """The documents of a split, decoded; each must end in its end-of-text token."""
    texts = []
    for index in range(data.num_documents(split)):
        ids = data.document(split, index)
        assert ids[-1] == data.eot_id
        texts.append(data.tokenizer.decode(ids[:-1].tolist()))
    return texts


def test_splits_partition_the_documents(data: TokenData, documents: list[str]) -> None:
    parts = {name: texts_of(data, name) for name in SPLIT_NAMES}
    assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(documents)
    for name, texts in parts.items():
        assert texts == [text for text in documents if data.split.assign(text) == name]


def test_tokenizer_is_trained_on_training_documents_alone(
    config: DataConfig, data: TokenData, documents: list[str]
) -> None:
    training = [text for text in documents if data.split.assign(text) == "train"]
    assert data.tokenizer.to_json() == config.tokenizer.build(training).to_json()
    assert data.tokenizer.to_json() != config.tokenizer.build(documents).to_json()


def test_token_and_byte_counts(data: TokenData) -> None:
    for name in SPLIT_NAMES:
        texts = texts_of(data, name)
        num_tokens = sum(len(data.tokenizer.encode(text)) + 1 for text in texts)
        assert data.num_tokens(name) == num_tokens
        num_bytes = sum(len(text.encode()) for text in texts)
        assert data.bytes_per_token(name) == num_bytes / num_tokens
    assert data.bytes_per_token() == data.bytes_per_token("validation")


def test_copies_and_order_move_no_text(
    config: DataConfig, data: TokenData, documents: list[str], tmp_path: Path
) -> None:
    shuffled = random.Random(0).sample(documents * 3, k=3 * len(documents))
    source = LocalConfig(path=write_jsonl(tmp_path / "corpus.jsonl", shuffled))
    copies = DataConfig(source=source, tokenizer=config.tokenizer, split=config.split)
    prepared = copies.prepare(tmp_path / "cache", progress=False)
    for name in SPLIT_NAMES:
        assert sorted(texts_of(prepared, name)) == sorted(3 * texts_of(data, name))


def test_fractions_hold_on_average() -> None:
    split = DocumentSplit(validation_fraction=0.2, test_fraction=0.1)
    names = [split.assign(str(index)) for index in range(20_000)]
    assert names.count("validation") / len(names) == pytest.approx(0.2, abs=0.01)
    assert names.count("test") / len(names) == pytest.approx(0.1, abs=0.01)
    salted = DocumentSplit(validation_fraction=0.2, test_fraction=0.1, salt="other")
    assert names != [salted.assign(str(index)) for index in range(20_000)]


@given(st.integers(1, 60), st.integers(0, 2000), st.integers(0, 99), st.integers(0, 99))
def test_an_epoch_holds_every_window_once(T: int, extra: int, seed: int, epoch: int) -> None:
    num_tokens = 2 * T + extra
    split = DocumentSplit()
    starts = split.train_starts(num_tokens, T, seed, epoch)
    ordered = np.sort(starts)
    assert len(starts) == split.num_train_windows(num_tokens, T)
    assert (np.diff(ordered) == T).all()  # disjoint in inputs and targets, without a gap
    assert 0 <= ordered[0] < T
    assert ordered[-1] + T + 1 <= num_tokens
    assert num_tokens - T * len(starts) < 2 * T  # no more is left out


def test_leaky_split_is_the_published_one(config: DataConfig, tmp_path: Path) -> None:
    T, num_tokens = 16, 700
    leaky = DataConfig(
        source=config.source,
        tokenizer=config.tokenizer,
        split=LeakyWindowSplit(),
        max_tokens=num_tokens,
        max_characters_per_document=50,
    )
    data = leaky.prepare(tmp_path, progress=False)
    assert "leaky" in data.warnings[0]
    assert data.num_tokens("train") == data.num_tokens("validation") == num_tokens
    # the stream: every document's first characters, nothing between them, cut
    stream = [i for text in leaky.documents() for i in data.tokenizer.encode(text)][:num_tokens]
    stored = np.concatenate([data.document("train", d) for d in range(data.num_documents("train"))])
    assert stored.tolist() == stream
    num_bytes = len(data.tokenizer.decode(stream).encode())
    assert data.bytes_per_token("train") == num_bytes / num_tokens

    windows = [stream[start : start + T + 1] for start in range(num_tokens - T)]
    num_train = int(0.9 * len(windows))
    generator = torch.Generator().manual_seed(42)
    train, validation = torch.utils.data.random_split(
        windows,  # pyright: ignore[reportArgumentType]
        [num_train, len(windows) - num_train],
        generator,
    )
    batches = list(data.evaluation_batches("validation", 8, T, max_batches=3))
    found = [
        [*row, targets[-1]]
        for x, y in batches
        for row, targets in zip(x.tolist(), y.tolist(), strict=True)
    ]
    assert found == [windows[index] for index in validation.indices[:24]]
    epoch = [row for step in range(num_train // 5) for row in data.batch(5, step, 5, T).tolist()]
    assert sorted(epoch) == sorted(windows[index] for index in train.indices)
    with pytest.raises(DataError, match="no test split"):
        data.num_tokens("test")


def test_illegal_fractions() -> None:
    with pytest.raises(
        ValueError, match=r"^validation_fraction=1.5: expected at least 0 and below"
    ):
        DocumentSplit(validation_fraction=1.5)
    with pytest.raises(ValueError, match=r"^validation_fraction \+ test_fraction = 1.1: expected"):
        DocumentSplit(validation_fraction=0.6, test_fraction=0.5)
    with pytest.raises(ValueError, match=r"^validation_fraction=-1: expected"):
        LeakyWindowSplit(validation_fraction=-1)
