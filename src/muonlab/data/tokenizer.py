"""Byte-level BPE: trained on the corpus, read from a ``tokenizer.json``, or taken from the Hub."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tokenizers
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, trainers

from muonlab.data.errors import DataError
from muonlab.data.sources import first_line

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256


class TextTokenizer:
    """Text to token ids and back, with one known end-of-text token.

    Text is only ever text: an end-of-text token spelt out in it is encoded as its letters.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text: str = END_OF_TEXT) -> None:
        eot_id = backend.token_to_id(end_of_text)
        if eot_id is None:
            specials = [str(token) for token in backend.get_added_tokens_decoder().values()]
            legal = ", ".join(specials) or "none, it has no special tokens"
            raise DataError(
                f"end_of_text={end_of_text!r}: not in the tokenizer; special ones: {legal}"
            )
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.end_of_text = end_of_text
        self.eot_id: int = eot_id
        self.vocab_size: int = 1 + max(backend.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end-of-text token."""
        # A batch of one lets go of Python's lock; `encode` does not.
        return self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens spelt out."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``."""
        return self.backend.to_str(pretty=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBPE:
    """A byte-level BPE trained on the first ``max_characters`` of the training documents.

    A small corpus may yield fewer than ``vocab_size`` tokens.
    """

    kind: Literal["train"] = "train"
    vocab_size: int = 4096
    max_characters: int = 200_000_000

    def __post_init__(self) -> None:
        if self.vocab_size <= NUM_BYTES:
            least = NUM_BYTES + 1
            raise ValueError(f"vocab_size={self.vocab_size}: expected at least {least}")
        if self.max_characters < 1:
            raise ValueError(f"max_characters={self.max_characters}: expected at least 1")

    @property
    def end_of_text(self) -> str:
        return END_OF_TEXT

    def fingerprint(self) -> str:
        return repr(self)

    def build(self, training_documents: Iterable[str]) -> TextTokenizer:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(
            _first_characters(training_documents, self.max_characters), trainer
        )
        return TextTokenizer(backend)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFile:
    """A ``tokenizer.json`` as the `tokenizers` library writes it."""

    kind: Literal["file"] = "file"
    path: Path
    end_of_text: str = END_OF_TEXT

    def fingerprint(self) -> str:
        return hashlib.sha256(self._read().encode()).hexdigest() + self.end_of_text

    def build(self, training_documents: Iterable[str]) -> TextTokenizer:
        return parse_tokenizer(self._read(), self.end_of_text, str(self.path))

    def _read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8 at byte {error.start}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class HubTokenizer:
    """A tokenizer of the Hugging Face Hub, e.g. ``HuggingFaceTB/SmolLM-135M``."""

    kind: Literal["hub"] = "hub"
    name: str
    revision: str = "main"
    end_of_text: str = END_OF_TEXT

    def fingerprint(self) -> str:
        return repr(self)

    def build(self, training_documents: Iterable[str]) -> TextTokenizer:
        try:
            backend = tokenizers.Tokenizer.from_pretrained(self.name, revision=self.revision)
        except Exception as error:  # the library raises bare exceptions
            raise DataError(f"tokenizer {self.name}: {first_line(error)}") from error
        return TextTokenizer(backend, self.end_of_text)


TokenizerConfig = Annotated[TrainBPE | TokenizerFile | HubTokenizer, Field(discriminator="kind")]


def parse_tokenizer(json_text: str, end_of_text: str, name: str) -> TextTokenizer:
    """A tokenizer from the content of its ``tokenizer.json``; ``name`` stands in the error."""
    try:
        backend = tokenizers.Tokenizer.from_str(json_text)
    except Exception as error:  # the library raises bare exceptions
        raise DataError(f"{name}: not a tokenizer.json ({first_line(error)})") from None
    return TextTokenizer(backend, end_of_text)


def _first_characters(documents: Iterable[str], max_characters: int) -> Iterator[str]:
    remaining = max_characters
    for text in documents:
        yield text[:remaining]
        remaining -= len(text)
        if remaining <= 0:
            return
