"""Several sources with weights: shares at every step, held-out text once, clear refusals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_corpus import invent_documents, write_jsonl

from muonlab.data import (
    DataConfig,
    DataError,
    DocumentSplit,
    LeakyWindowSplit,
    LocalConfig,
    MixtureConfig,
    TokenData,
    TrainBPE,
)
from muonlab.data.sources import take_turns
from muonlab.data.tokens import share_out

T = 16


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalConfig, ...]:
    """Three corpora of 60, 120 and 240 documents; the letter before each number tells which."""
    directory = tmp_path_factory.mktemp("sources")
    texts = [
        [text.replace("#", letter) for text in invent_documents(count, seed)]
        for seed, (letter, count) in enumerate((("A", 60), ("B", 120), ("C", 240)))
    ]
    return tuple(
        LocalConfig(path=write_jsonl(directory / f"{number}.jsonl", each))
        for number, each in enumerate(texts)
    )


def mixed(
    sources: tuple[LocalConfig, ...], weights: tuple[float, ...] | None, cache: Path
) -> TokenData:
    config = DataConfig(
        source=MixtureConfig(sources=sources, weights=weights),
        tokenizer=TrainBPE(vocab_size=300),
        split=DocumentSplit(validation_fraction=0.2, test_fraction=0.1),
    )
    return config.prepare(cache, progress=False)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5),
    st.integers(0, 10**9),
    st.integers(1, 64),
)
def test_shares_hold_after_every_sample(weights: list[float], first: int, count: int) -> None:
    samples = np.arange(first, first + count)
    chosen, numbers = share_out(samples, weights)
    shares = np.array(weights) / sum(weights)
    for source in range(len(weights)):
        own = numbers[chosen == source]
        assert np.array_equal(own, own[:1] + np.arange(len(own))), "one after the other"
        expected = samples[chosen == source] * shares[source]
        assert np.all(np.abs(own - expected) <= 1 + source + 1e-5 * expected)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4), st.integers(1, 9))
def test_samples_do_not_depend_on_the_batch(weights: list[float], batch_size: int) -> None:
    whole = share_out(np.arange(90), weights)
    for start in range(0, 90 - batch_size, batch_size):
        part = share_out(np.arange(start, start + batch_size), weights)
        for one, other in zip(part, whole, strict=True):
            assert np.array_equal(one, other[start : start + batch_size])


def test_one_source_takes_every_sample() -> None:
    chosen, numbers = share_out(np.arange(5, 9), [3.0])
    assert chosen.tolist() == [0] * 4
    assert numbers.tolist() == [5, 6, 7, 8]


def test_windows_come_by_weight(sources: tuple[LocalConfig, ...], tmp_path: Path) -> None:
    data = mixed(sources, (6, 3, 1), tmp_path)
    streams = [data._tokens[f"train.{number}"].tolist() for number in range(3)]
    counts = [0, 0, 0]
    for step in range(10):
        for row in data.batch(0, step, 10, T).tolist():
            found = [
                number
                for number, stream in enumerate(streams)
                if any(stream[i : i + T + 1] == row for i in range(len(stream) - T))
            ]
            assert len(found) == 1
            counts[found[0]] += 1
    assert counts == [60, 30, 10]
    assert data.batch(0, 7, 10, T).equal(mixed(sources, (6, 3, 1), tmp_path).batch(0, 7, 10, T))
    assert not data.batch(0, 7, 10, T).equal(data.batch(1, 7, 10, T))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_sizes_as_weights_make_an_epoch_of_each_window_once(num_windows: list[int]) -> None:
    chosen, numbers = share_out(np.arange(sum(num_windows)), num_windows)
    for source, count in enumerate(num_windows):
        assert np.array_equal(numbers[chosen == source], np.arange(count))


def test_without_weights_sizes_are_the_weights(
    sources: tuple[LocalConfig, ...], tmp_path: Path
) -> None:
    data = mixed(sources, None, tmp_path)
    sizes = tuple(float(data._num_windows(f"train.{number}", T)) for number in range(3))
    assert data.num_windows(T) == sum(sizes)
    assert data.batch(3, 5, 8, T).equal(mixed(sources, sizes, tmp_path).batch(3, 5, 8, T))


def test_held_out_documents_of_all_sources_are_measured_once(
    sources: tuple[LocalConfig, ...], tmp_path: Path
) -> None:
    data = mixed(sources, (1, 1, 8), tmp_path)
    split = data.split
    texts = [text for source in sources for text in source.documents()]
    for name in ("train", "validation", "test"):
        numbers = range(data.num_documents(name))
        found = [data.tokenizer.decode(data.document(name, i)[:-1].tolist()) for i in numbers]
        assert sorted(found) == sorted(text for text in texts if split.assign(text) == name)
    targets = [t for _, batch in data.evaluation_batches("validation", 4, T) for t in batch]
    assert sum(int((row >= 0).sum()) for row in targets) == data.num_tokens("validation") - 1
    with pytest.raises(IndexError, match="the test split has"):
        data.document("test", 10_000)
    with pytest.raises(DataError, match="a mixture has several training streams"):
        next(data.evaluation_batches("train", 4, T))


def test_weights_share_a_cache_and_limits_take_from_all(
    sources: tuple[LocalConfig, ...], tmp_path: Path
) -> None:
    one, other = (DataConfig(source=MixtureConfig(sources=sources, weights=w)) for w in
                  ((1, 1, 1), (1, 2, 3)))  # fmt: skip
    assert one.cache_key() == other.cache_key()
    limited = DataConfig(source=MixtureConfig(sources=sources), max_documents=7)
    assert [text[0] for text in limited.documents()] == list("ABCABCA")
    assert [number for number, _ in take_turns(sources)][-1] == 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "weights holds 2 numbers; it must hold one for each of the 3 sources"),
        ((0.0, 0.0, 0.0), "weights.0 is 0.0; it must be positive"),
        ((1.0, -2.0, 1.0), "weights.1 is -2.0; it must be positive"),
        ((1.0, 1.0, float("nan")), "weights.2 is nan; it must be positive"),
        ((1.0, float("inf"), 1.0), "weights.1 is inf; it must be positive"),
    ],
)
def test_weights_that_mean_nothing(
    sources: tuple[LocalConfig, ...], weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        MixtureConfig(sources=sources, weights=weights)


def test_what_cannot_be_mixed(sources: tuple[LocalConfig, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources holds 1; a mixture is of at least 2"):
        MixtureConfig(sources=sources[:1])
    with pytest.raises(ValueError, match="split is leaky_windows, which takes one source"):
        DataConfig(source=MixtureConfig(sources=sources), split=LeakyWindowSplit())
    single = LocalConfig(path=write_jsonl(tmp_path / "one.jsonl", ["only one"]))
    with pytest.raises(DataError, match=r"of data\.source\.sources\.3 (is too small|holds none)"):
        mixed((*sources, single), None, tmp_path).batch(0, 0, 2, T)


def test_a_corpus_that_changes_while_it_is_read(
    sources: tuple[LocalConfig, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "grows.jsonl", invent_documents(250))
    config = DataConfig(source=LocalConfig(path=path), tokenizer=TrainBPE(vocab_size=300))
    build = TrainBPE.build

    def grow(self: TrainBPE, documents):
        tokenizer = build(self, documents)
        write_jsonl(path, invent_documents(260))
        return tokenizer

    monkeypatch.setattr(TrainBPE, "build", grow)
    with pytest.raises(DataError, match="the corpus has changed while it was read"):
        config.prepare(tmp_path / "cache", progress=False)
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]
