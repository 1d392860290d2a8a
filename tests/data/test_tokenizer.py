from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from invented_corpus import invent_documents
from tokenizers import models

from muonlab.data import DataError, HubTokenizer, TextTokenizer, TokenizerFile, TrainBPE


@pytest.fixture(scope="module")
def tokenizer(documents: list[str]) -> TextTokenizer:
    return TrainBPE(vocab_size=400).build(documents)


@given(text=st.text(st.characters(codec="utf-8")))
def test_round_trip_of_any_unicode(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size and token != tokenizer.eot_id for token in ids)


def test_end_of_text_is_one_token_only_when_meant(tokenizer: TextTokenizer) -> None:
    text = "before<|endoftext|>after"
    ids = tokenizer.encode(text)
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.eot_id]) == "<|endoftext|>"


def test_training_is_deterministic_and_meets_the_vocabulary(documents: list[str]) -> None:
    first, second = (TrainBPE(vocab_size=333).build(documents) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.vocab_size == 333


def test_training_reads_only_the_first_characters(documents: list[str]) -> None:
    unread = invent_documents(100, seed=9)
    length = sum(len(text) for text in documents)
    config = TrainBPE(vocab_size=500, max_characters=length)
    assert config.build(documents + unread).to_json() == config.build(documents).to_json()
    assert config.build(unread + documents).to_json() != config.build(documents).to_json()


def test_file_gives_the_same_ids(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = TokenizerFile(path=path).build([])
    text = "a naïve 東京 expert 🙂"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.vocab_size, loaded.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)


def test_own_end_of_text_token(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.add_special_tokens(["<s>", "</s>"])
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    assert TokenizerFile(path=path, end_of_text="</s>").build([]).eot_id == 1
    complaint = r"end_of_text='<\|endoftext\|>': not in the tokenizer; special ones: <s>, </s>$"
    with pytest.raises(DataError, match=complaint):
        TokenizerFile(path=path).build([])


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content, complaint in (
        (b'{"model": 1}', "not a tokenizer.json"),
        (b"hello", "not a tokenizer.json"),
        (b"\xff", "not UTF-8 at byte 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            TokenizerFile(path=path).build([])
        assert str(caught.value).startswith(f"{path}: {complaint}")
        assert "\n" not in str(caught.value)


def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise Exception("cannot reach the Hub\nmore words")

    class Unreachable:
        from_pretrained = unreachable

    monkeypatch.setattr(tokenizers, "Tokenizer", Unreachable)
    with pytest.raises(DataError, match=r"^tokenizer a/b: Exception: cannot reach the Hub$"):
        HubTokenizer(name="a/b").build([])


def test_illegal_values() -> None:
    with pytest.raises(ValueError, match=r"^vocab_size=256: expected at least 257$"):
        TrainBPE(vocab_size=256)
    with pytest.raises(ValueError, match=r"^max_characters=0: expected at least 1$"):
        TrainBPE(max_characters=0)
