"""Which text trains and which measures: an honest split by document, and a published leaky one.

N tokens in a stream, T the sequence length; a window is T inputs and the T targets one further on.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from muonlab.data.errors import DataError

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentSplit:
    """Whole documents, assigned by a hash of their text: equal texts never part, order is nothing.

    Each split is a stream of its own, with an end-of-text token after every document.
    """

    kind: Literal["documents"] = "documents"
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    salt: str = ""

    end_of_text: ClassVar[bool] = True
    takes_mixtures: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            _check_fraction(name, getattr(self, name))
        if self.validation_fraction + self.test_fraction >= 1:
            held_out = self.validation_fraction + self.test_fraction
            raise ValueError(f"validation_fraction + test_fraction = {held_out}: expected below 1")

    def assign(self, text: str) -> SplitName:
        """The split of a document."""
        key = self.salt.encode() + b"\0" + text.encode()
        position = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64
        if position < self.test_fraction:
            return "test"
        if position < self.test_fraction + self.validation_fraction:
            return "validation"
        return "train"

    def needed_streams(self) -> tuple[SplitName, ...]:
        """The streams that must not be empty."""
        return ("train", "validation") if self.validation_fraction > 0 else ("train",)

    def stream(self, split: SplitName) -> SplitName:
        """The stream that holds a split's windows."""
        return split

    def tokens_needed(self, batch_size: int, sequence_length: int) -> int:
        """The fewest training tokens that make one batch."""
        return (batch_size + 1) * sequence_length

    def num_train_windows(self, num_tokens: int, sequence_length: int) -> int:
        """Windows per epoch; one less than would fit, so that every offset below T has as many."""
        return num_tokens // sequence_length - 1

    def train_starts(
        self, num_tokens: int, sequence_length: int, seed: int, epoch: int
    ) -> np.ndarray:
        """Where an epoch's windows start, in order of use: shuffled, disjoint in targets."""
        generator = np.random.default_rng((seed, epoch))
        offset = generator.integers(sequence_length)
        num_windows = self.num_train_windows(num_tokens, sequence_length)
        return generator.permutation(num_windows) * sequence_length + offset

    def evaluation_starts(
        self, split: SplitName, num_tokens: int, sequence_length: int
    ) -> np.ndarray:
        """Where the evaluation windows start; the last may reach past the end of the stream."""
        return np.arange(0, num_tokens - 1, sequence_length)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakyWindowSplit:
    """Windows at every token of one stream, split at random: validation text is training text.

    It replays a published protocol (random_split of stride-1 windows, no end-of-text tokens), to
    show what such a validation loss is worth. It supports no claim about a language model.
    """

    kind: Literal["leaky_windows"] = "leaky_windows"
    validation_fraction: float = 0.1
    generator_seed: int = 42

    end_of_text: ClassVar[bool] = False
    takes_mixtures: ClassVar[bool] = False
    warnings: ClassVar[tuple[str, ...]] = (
        "leaky split: validation windows overlap training windows in all but a few tokens, "
        "so the validation loss measures memorisation",
    )

    def __post_init__(self) -> None:
        _check_fraction("validation_fraction", self.validation_fraction)

    def assign(self, text: str) -> SplitName:
        """Every document goes into the one stream."""
        return "train"

    def needed_streams(self) -> tuple[SplitName, ...]:
        """The streams that must not be empty."""
        return ("train",)

    def stream(self, split: SplitName) -> SplitName:
        """The stream that holds a split's windows: the same for both."""
        if split == "test":
            raise DataError("the leaky window split has no test split, only train and validation")
        return "train"

    def tokens_needed(self, batch_size: int, sequence_length: int) -> int:
        """The fewest tokens that make one training batch, or one more."""
        return sequence_length + 1 + int(batch_size / (1 - self.validation_fraction))

    def num_train_windows(self, num_tokens: int, sequence_length: int) -> int:
        """Training windows per epoch: a T-fold repetition of the text."""
        return int((1 - self.validation_fraction) * (num_tokens - sequence_length))

    def train_starts(
        self, num_tokens: int, sequence_length: int, seed: int, epoch: int
    ) -> np.ndarray:
        """Where an epoch's windows start, in order of use."""
        num_windows = self.num_train_windows(num_tokens, sequence_length)
        starts = self._shuffled(num_tokens, sequence_length)[:num_windows]
        return np.random.default_rng((seed, epoch)).permutation(starts)

    def evaluation_starts(
        self, split: SplitName, num_tokens: int, sequence_length: int
    ) -> np.ndarray:
        """Where the evaluation windows start, in the order of the random split."""
        num_windows = self.num_train_windows(num_tokens, sequence_length)
        shuffled = self._shuffled(num_tokens, sequence_length)
        return shuffled[:num_windows] if split == "train" else shuffled[num_windows:]

    def _shuffled(self, num_tokens: int, sequence_length: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.generator_seed)
        return torch.randperm(max(num_tokens - sequence_length, 0), generator=generator).numpy()


Split = Annotated[DocumentSplit | LeakyWindowSplit, Field(discriminator="kind")]


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected at least 0 and below 1")
