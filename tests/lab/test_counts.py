"""Counting against texts whose entropy is known, and where the report shows it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from muonlab.data import TokenData
from muonlab.lab.counts import (
    bigram_loss,
    count_losses,
    read_counts,
    unigram_loss,
    with_counts,
    write_counts,
)


def test_a_unigram_comes_to_the_entropy_of_independent_tokens() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    train, tokens = (generator.choice(3, 40_000, p=shares) for _ in range(2))
    entropy = -(shares * np.log(shares)).sum()
    assert unigram_loss(train, tokens, 3) == pytest.approx(entropy, abs=0.01)
    assert bigram_loss(train, tokens, 3) == pytest.approx(entropy, abs=0.01)


def test_a_bigram_sees_what_follows_what() -> None:
    train = np.tile([0, 1, 2, 3], 500)
    assert unigram_loss(train, train, 4) == pytest.approx(math.log(4), abs=0.01)
    assert bigram_loss(train, train, 4) < 0.01
    by_hand = -math.log((0 + 1 * (501 / 2004)) / (500 + 1))  # 0 is never followed by 2
    assert bigram_loss(train, np.array([0, 2]), 4) == pytest.approx(by_hand)
    never = -math.log(1 / 2005)  # 4 follows nothing, and nothing follows it
    assert bigram_loss(train, np.array([4, 4]), 5) == pytest.approx(never)


def test_counts_are_kept_beside_the_study_and_shown_by_split(
    tiny_data: TokenData, tmp_path: Path
) -> None:
    counted = count_losses(tiny_data)
    assert set(counted) == {"validation", "test"}
    assert counted["test"]["bigram"] < counted["test"]["unigram"] < math.log(300)
    write_counts(tmp_path, {"a": tiny_data})
    frame = pd.DataFrame({"arm": ["muon", "other"], "split": ["test", "validation"]})
    found = with_counts(frame, {"muon": "a", "other": "unknown"}, read_counts(tmp_path))
    known, unknown = found["bigram"].tolist()
    assert known == pytest.approx(counted["test"]["bigram"])
    assert math.isnan(unknown)
    (tmp_path / "counts.json").write_text("{")
    assert read_counts(tmp_path) == {}
