"""Prepared tokens: batches for training as a pure function of seed and step, and for evaluation.

B batch size, T sequence length, N tokens of a stream.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from muonlab.data.errors import DataError
from muonlab.data.shards import open_shard, read_manifest
from muonlab.data.splits import Split, SplitName
from muonlab.data.tokenizer import parse_tokenizer

IGNORED_TARGET = -100  # torch.nn.functional.cross_entropy's default ignore_index


class TokenData:
    """A token cache opened for reading; made by `DataConfig.prepare`."""

    def __init__(
        self,
        directory: Path,
        split: Split,
        end_of_text: str,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Open and verify; ``weights`` are of the sources of a mixture. Raises `CacheDamagedError`
        unless every byte is as it was written.
        """
        manifest = read_manifest(directory)
        self.directory = directory
        self.split = split
        self.tokenizer = parse_tokenizer(
            (directory / "tokenizer.json").read_text(encoding="utf-8"), end_of_text, str(directory)
        )
        self.vocab_size = self.tokenizer.vocab_size
        self.eot_id = self.tokenizer.eot_id
        self.warnings: tuple[str, ...] = split.warnings
        files = json.dumps([manifest["dtype"], manifest["files"]], sort_keys=True)
        self.data_hash: str = hashlib.sha256(files.encode()).hexdigest()
        self._weights = weights
        self._text_bytes: dict[str, int] = manifest["text_bytes"]
        self._tokens = {
            name: open_shard(directory / f"{name}.tokens", manifest["dtype"])
            for name in self._text_bytes
        }
        self._offsets = {
            name: open_shard(directory / f"{name}.offsets", "int64") for name in self._text_bytes
        }

    def num_tokens(self, split: SplitName) -> int:
        """Tokens in the streams that hold a split, end-of-text tokens included."""
        return sum(len(self._tokens[stream]) for stream in self._streams(split))

    def num_documents(self, split: SplitName) -> int:
        """Documents in the streams that hold a split."""
        return sum(len(self._offsets[stream]) - 1 for stream in self._streams(split))

    def document(self, split: SplitName, index: int) -> np.ndarray:
        """The tokens of one document, its end-of-text token included."""
        for stream in self._streams(split):
            if index < len(self._offsets[stream]) - 1:
                begin, end = self._offsets[stream][index : index + 2]
                return self._tokens[stream][begin:end]
            index -= len(self._offsets[stream]) - 1
        raise IndexError(f"the {split} split has {self.num_documents(split)} documents")

    def bytes_per_token(self, split: SplitName = "validation") -> float:
        """UTF-8 bytes of a split's text per token: bits per byte = loss / ln 2 / this."""
        num_bytes = sum(self._text_bytes[stream] for stream in self._streams(split))
        return num_bytes / max(self.num_tokens(split), 1)

    def num_windows(self, sequence_length: int) -> int:
        """Training windows of T tokens in one epoch, each source's text once."""
        return sum(self._num_windows(s, sequence_length) for s in self._streams("train"))

    def batch(self, seed: int, step: int, batch_size: int, sequence_length: int) -> torch.Tensor:
        """Training batch ``step`` (from 0), (B, T + 1) int64: inputs [:, :-1], targets [:, 1:].

        A pure function of its arguments. An epoch is a shuffle of windows; see the split. Of a
        mixture, windows come from its sources in proportion to the weights, at every step; each
        source has epochs of its own.
        """
        streams = self._streams("train")
        self._check_enough(streams, batch_size, sequence_length)
        weights = self._weights or [self._num_windows(s, sequence_length) for s in streams]
        samples = np.arange(step * batch_size, (step + 1) * batch_size)
        chosen, numbers = share_out(samples, weights)
        windows = torch.empty(batch_size, sequence_length + 1, dtype=torch.int64)
        for index in np.unique(chosen):
            rows = np.flatnonzero(chosen == index)
            starts = self._starts(streams[index], numbers[rows], sequence_length, seed)
            windows[torch.from_numpy(rows)] = self._gather(streams[index], starts, sequence_length)
        return windows

    def evaluation_batches(
        self,
        split: SplitName,
        batch_size: int,
        sequence_length: int,
        max_batches: int | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets, (≤ B, T) int64 each, over the whole split or its first batches.

        Windows do not overlap: every token but the first is a target exactly once. Past the end of
        the stream targets are -100. The last batch has fewer rows where the windows run out.
        """
        stream, *others = self._streams(split)
        if others:
            raise DataError("a mixture has several training streams; evaluate validation or test")
        num_tokens = self.num_tokens(split)
        starts = self.split.evaluation_starts(split, num_tokens, sequence_length)
        if len(starts) == 0:
            raise DataError(
                f"the {split} split has {num_tokens} tokens, of {self.num_documents(split)} "
                f"documents, and 2 tokens are needed; a larger data.split.{split}_fraction or more "
                f"documents (data.max_documents) fill it"
            )
        for first in range(0, len(starts), batch_size)[:max_batches]:
            window_starts = starts[first : first + batch_size]
            windows = self._gather(stream, window_starts, sequence_length)
            targets = windows[:, 1:].clone()
            num_targets = torch.from_numpy(num_tokens - 1 - window_starts)[
                :, None
            ]  # left in stream
            targets[torch.arange(sequence_length) >= num_targets] = IGNORED_TARGET
            yield windows[:, :-1], targets

    def _streams(self, split: SplitName) -> list[str]:
        """The streams that hold a split: one, or for the training split one of each source."""
        name = self.split.stream(split)
        if name in self._tokens:
            return [name]
        num_sources = sum(stream.startswith(f"{name}.") for stream in self._tokens)
        return [f"{name}.{number}" for number in range(num_sources)]

    def _num_windows(self, stream: str, sequence_length: int) -> int:
        return self.split.num_train_windows(len(self._tokens[stream]), sequence_length)

    def _check_enough(self, streams: list[str], batch_size: int, sequence_length: int) -> None:
        rows = batch_size if len(streams) == 1 else 1  # a source of a mixture may repeat
        needed = self.split.tokens_needed(rows, sequence_length)
        for number, stream in enumerate(streams):
            found = len(self._tokens[stream])
            if found < needed:
                where = "" if len(streams) == 1 else f" of data.source.sources.{number}"
                raise DataError(
                    f"the training split{where} is too small for a batch of {batch_size} × "
                    f"{sequence_length}: {needed} tokens needed, {found} found"
                )

    def _starts(
        self, stream: str, numbers: np.ndarray, sequence_length: int, seed: int
    ) -> np.ndarray:
        """Where a stream's windows of these numbers start, through as many epochs as it takes."""
        epochs, positions = np.divmod(numbers, self._num_windows(stream, sequence_length))
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            shuffled = _epoch_starts(
                self.split, len(self._tokens[stream]), sequence_length, seed, int(epoch)
            )
            starts[rows] = shuffled[positions[rows]]
        return starts

    def _gather(self, stream: str, starts: np.ndarray, sequence_length: int) -> torch.Tensor:
        tokens = self._tokens[stream]
        positions = starts[:, None] + np.arange(sequence_length + 1)  # (B, T + 1)
        return torch.from_numpy(tokens.take(positions, mode="clip").astype(np.int64))


def share_out(samples: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which source each sample is of, and which of that source's samples it is, from 0.

    Of the first n samples, source 0 gets its share of n, rounded, and the sources after it share
    the others in the same way. So shares are kept at every step, within one sample for each
    source before it, and a sample's place follows from its number alone.
    """
    chosen, numbers = np.zeros_like(samples), samples.copy()
    for source in range(len(weights) - 1):
        share = weights[source] / sum(weights[source:])
        undecided = chosen == source
        before = np.floor(numbers[undecided] * share + 0.5).astype(samples.dtype)
        after = np.floor((numbers[undecided] + 1) * share + 0.5).astype(samples.dtype)
        taken = after > before
        numbers[undecided] = np.where(taken, before, numbers[undecided] - before)
        chosen[undecided] = np.where(taken, source, source + 1)
    return chosen, numbers


@functools.lru_cache(maxsize=32)
def _epoch_starts(
    split: Split, num_tokens: int, sequence_length: int, seed: int, epoch: int
) -> np.ndarray:
    return split.train_starts(num_tokens, sequence_length, seed, epoch)
