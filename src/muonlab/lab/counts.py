"""What counting tokens alone comes to: the losses that a language model has to beat.

A unigram model predicts every token by how often it stands in the training split, a bigram model by
how often it follows the token before it. A model that is no better than the bigram says nothing of
attention.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muonlab.data import DocumentSplit, SplitName, TokenData
from muonlab.files import as_json, write_whole

FILE = "counts.json"  # in a study's folder: what is counted, by the key of the data
Tokens = NDArray[np.integer]
Losses = Mapping[str, Mapping[str, float]]  # split → unigram and bigram


def write_counts(folder: Path, prepared: Mapping[str, TokenData]) -> None:
    """Count what the study's file does not hold yet; ``prepared``: the key of data → the data."""
    known = read_counts(folder)
    new = {key: count_losses(data) for key, data in prepared.items() if key not in known}
    if new:
        write_whole(folder / FILE, as_json(known | new))


def read_counts(folder: Path) -> dict[str, Losses]:
    """By the key of the data; nothing where the file is missing or damaged: it is made again."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def with_counts(
    frame: pd.DataFrame, keys: Mapping[str, str], counts: Mapping[str, Losses]
) -> pd.DataFrame:
    """The frame with ``unigram`` and ``bigram``, of the split of each run's loss; NaN: unknown.

    ``keys``: arm → the key of its data.
    """
    found = [
        counts.get(keys[arm], {}).get(split, {})
        for arm, split in zip(frame["arm"], frame["split"], strict=True)
    ]
    return frame.assign(
        **{kind: [losses.get(kind, np.nan) for losses in found] for kind in ("unigram", "bigram")}
    )


def count_losses(data: TokenData) -> dict[str, dict[str, float]]:
    """Cross-entropy of the training split's counts on validation and test, nats per token.

    Splits without two tokens are left out. Counting chooses nothing, so it may see the test split.
    """
    train = split_tokens(data, "train")
    losses: dict[str, dict[str, float]] = {}
    has_test = isinstance(data.split, DocumentSplit)
    splits: tuple[SplitName, ...] = ("validation", "test") if has_test else ("validation",)
    for split in splits:
        tokens = split_tokens(data, split)
        if len(tokens) > 1:
            losses[split] = {
                "unigram": unigram_loss(train, tokens, data.vocab_size),
                "bigram": bigram_loss(train, tokens, data.vocab_size),
            }
    return losses


def split_tokens(data: TokenData, split: SplitName) -> Tokens:
    """All tokens of a split, document after document."""
    documents = [data.document(split, index) for index in range(data.num_documents(split))]
    return np.concatenate(documents) if documents else np.empty(0, dtype=np.int64)


def unigram_loss(train: Tokens, tokens: Tokens, vocab_size: int) -> float:
    """Of every token but the first; a count more for each token, so that none is impossible."""
    return float(-np.log(_unigram(train, vocab_size)[tokens[1:]]).mean())


def bigram_loss(train: Tokens, tokens: Tokens, vocab_size: int) -> float:
    """Of every token after the one before it, smoothed by the unigram. Source: Witten & Bell 1991.

    p(b | a) = (count(a, b) + T(a)·p(b)) / (count(a) + T(a)), T(a) the different tokens that follow
    a; p(b) for an a that nothing follows.
    """
    pairs, counts = np.unique(_pairs(train, vocab_size), return_counts=True)
    before = pairs // vocab_size
    followed = np.bincount(before, weights=counts, minlength=vocab_size)  # count(a)
    kinds = np.bincount(before, minlength=vocab_size)  # T(a)
    wanted = _pairs(tokens, vocab_size)
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[places] == wanted, counts[places], 0)
    first = wanted // vocab_size
    unigram = _unigram(train, vocab_size)[wanted % vocab_size]
    alone = kinds[first] == 0
    mass = np.where(alone, 1, kinds[first])
    return float(-np.log((seen + mass * unigram) / (followed[first] + mass)).mean())


def _unigram(train: Tokens, vocab_size: int) -> NDArray[np.float64]:
    counts = np.bincount(train.astype(np.int64), minlength=vocab_size) + 1.0
    return counts / counts.sum()


def _pairs(tokens: Tokens, vocab_size: int) -> NDArray[np.int64]:
    """Every token but the first, with the one before it, as one number."""
    wide = tokens.astype(np.int64)
    return wide[:-1] * vocab_size + wide[1:]
