from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muonlab.data import (
    IGNORED_TARGET,
    DataConfig,
    DataError,
    DocumentSplit,
    SplitName,
    TokenData,
    TrainBPE,
)


def stream_of(data: TokenData, split: SplitName) -> np.ndarray:
    """All tokens of a split, read from the shard itself."""
    return np.fromfile(data.directory / f"{split}.tokens", dtype=np.uint16)


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 65))
def test_batch_is_pure(data: TokenData, seed: int, step: int, B: int, T: int) -> None:
    first = data.batch(seed, step, B, T)
    data.batch(seed + 1, step + 7, B, T)
    assert torch.equal(data.batch(seed, step, B, T), first)
    assert first.shape == (B, T + 1)
    assert first.dtype == torch.int64


def test_batches_of_an_epoch_cover_it_once(data: TokenData) -> None:
    T, B = 32, 5
    stream = stream_of(data, "train")
    num_windows = data.num_windows(T)
    assert num_windows == len(stream) // T - 1
    steps = 2 * num_windows  # so that 2B epochs end with a batch
    rows = torch.cat([data.batch(3, step, B, T) for step in range(steps)]).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(stream, T + 1)
    starts_of = {window.tobytes(): start for start, window in enumerate(windows)}
    assert len(starts_of) == len(windows)  # every window of this corpus is unique
    starts = np.array([starts_of[row.astype(np.uint16).tobytes()] for row in rows])
    epochs = starts.reshape(2 * B, num_windows)
    for epoch in epochs:
        assert (np.diff(np.sort(epoch)) == T).all()
    assert len({epoch.min() for epoch in epochs}) > 1  # the offset moves
    assert (np.diff(epochs[0]) != T).any()  # and the order is shuffled


def test_seeds_and_steps_differ(data: TokenData) -> None:
    batches = [data.batch(seed, step, 4, 32) for seed in range(3) for step in range(3)]
    assert len({batch.numpy().tobytes() for batch in batches}) == 9


@given(st.sampled_from(["validation", "test"]), st.integers(1, 9), st.integers(1, 700))
def test_evaluation_counts_every_token_once(
    data: TokenData, split: SplitName, B: int, T: int
) -> None:
    stream = stream_of(data, split)
    batches = list(data.evaluation_batches(split, B, T))
    inputs = torch.cat([x for x, _ in batches]).flatten()
    targets = torch.cat([y for _, y in batches]).flatten()
    counted = targets != IGNORED_TARGET
    assert targets[counted].tolist() == stream[1:].tolist()
    assert inputs[counted].tolist() == stream[:-1].tolist()
    assert all(len(x) == B for x, _ in batches[:-1])
    assert all(x.shape == y.shape == (len(x), T) for x, y in batches)
    first = list(data.evaluation_batches(split, B, T, max_batches=2))
    assert len(first) == min(2, len(batches))
    assert torch.equal(first[-1][1], batches[len(first) - 1][1])


def test_too_small_for_a_batch(data: TokenData) -> None:
    found = data.num_tokens("train")
    T = 16
    largest = found // T - 1
    assert data.batch(0, 0, largest, T).shape == (largest, T + 1)
    needed = (largest + 2) * T
    message = f"a batch of {largest + 1} × {T}: {needed} tokens needed, {found} found$"
    with pytest.raises(DataError, match=message):
        data.batch(0, 0, largest + 1, T)


def test_empty_evaluation_split_says_so(config: DataConfig, tmp_path: Path) -> None:
    split = DocumentSplit(validation_fraction=0.2, test_fraction=0)
    no_test = DataConfig(source=config.source, tokenizer=TrainBPE(vocab_size=257), split=split)
    data = no_test.prepare(tmp_path, progress=False)
    assert data.num_tokens("test") == 0
    with pytest.raises(DataError, match=r"the test split has 0 tokens, .*data\.split\.test_frac"):
        next(data.evaluation_batches("test", 1, 8))
