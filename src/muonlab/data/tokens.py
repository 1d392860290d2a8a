"""Prepared tokens: batches for training as a pure function of seed and step, and for evaluation.

B batch size, T sequence length, N tokens of a stream.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from muonlab.data.errors import DataError
from muonlab.data.shards import open_shard, read_manifest
from muonlab.data.splits import SPLIT_NAMES, Split, SplitName
from muonlab.data.tokenizer import parse_tokenizer

IGNORED_TARGET = -100  # torch.nn.functional.cross_entropy's default ignore_index


class TokenData:
    """A token cache opened for reading; made by `DataConfig.prepare`."""

    def __init__(self, directory: Path, split: Split, end_of_text: str) -> None:
        """Open and verify; raises `CacheDamagedError` unless every byte is as it was written."""
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
        self._text_bytes: dict[SplitName, int] = manifest["text_bytes"]
        self._tokens = {
            name: open_shard(directory / f"{name}.tokens", manifest["dtype"])
            for name in SPLIT_NAMES
        }
        self._offsets = {
            name: open_shard(directory / f"{name}.offsets", "int64") for name in SPLIT_NAMES
        }

    def num_tokens(self, split: SplitName) -> int:
        """Tokens in the stream that holds a split, end-of-text tokens included."""
        return len(self._tokens[self.split.stream(split)])

    def num_documents(self, split: SplitName) -> int:
        """Documents in the stream that holds a split."""
        return len(self._offsets[self.split.stream(split)]) - 1

    def document(self, split: SplitName, index: int) -> np.ndarray:
        """The tokens of one document, its end-of-text token included."""
        stream = self.split.stream(split)
        begin, end = self._offsets[stream][index : index + 2]
        return self._tokens[stream][begin:end]

    def bytes_per_token(self, split: SplitName = "validation") -> float:
        """UTF-8 bytes of a split's text per token: bits per byte = loss / ln 2 / this."""
        stream = self.split.stream(split)
        return self._text_bytes[stream] / max(len(self._tokens[stream]), 1)

    def num_windows(self, sequence_length: int) -> int:
        """Training windows of T tokens in one epoch."""
        return self.split.num_train_windows(self.num_tokens("train"), sequence_length)

    def batch(self, seed: int, step: int, batch_size: int, sequence_length: int) -> torch.Tensor:
        """Training batch ``step`` (from 0), (B, T + 1) int64: inputs [:, :-1], targets [:, 1:].

        A pure function of its arguments. An epoch is a shuffle of windows; see the split.
        """
        tokens_needed = self.split.tokens_needed(batch_size, sequence_length)
        if self.num_tokens("train") < tokens_needed:
            raise DataError(
                f"the training split is too small for a batch of {batch_size} × {sequence_length}: "
                f"{tokens_needed} tokens needed, {self.num_tokens('train')} found"
            )
        num_windows = self.num_windows(sequence_length)
        epoch, position = divmod(step * batch_size, num_windows)
        starts = self._epoch_starts(sequence_length, seed, epoch)[position : position + batch_size]
        if len(starts) < batch_size:
            following = self._epoch_starts(sequence_length, seed, epoch + 1)
            starts = np.concatenate((starts, following[: batch_size - len(starts)]))
        return self._gather("train", starts, sequence_length)

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
        stream = self.split.stream(split)
        num_tokens = self.num_tokens(split)
        starts = self.split.evaluation_starts(split, num_tokens, sequence_length)
        if len(starts) == 0:
            raise DataError(
                f"the {split} split is too small: 2 tokens needed, {num_tokens} found; "
                f"give it a larger fraction or more documents"
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

    def _gather(self, stream: SplitName, starts: np.ndarray, sequence_length: int) -> torch.Tensor:
        tokens = self._tokens[stream]
        positions = starts[:, None] + np.arange(sequence_length + 1)  # (B, T + 1)
        return torch.from_numpy(tokens.take(positions, mode="clip").astype(np.int64))

    def _epoch_starts(self, sequence_length: int, seed: int, epoch: int) -> np.ndarray:
        return _epoch_starts(self.split, self.num_tokens("train"), sequence_length, seed, epoch)


@functools.lru_cache(maxsize=4)
def _epoch_starts(
    split: Split, num_tokens: int, sequence_length: int, seed: int, epoch: int
) -> np.ndarray:
    return split.train_starts(num_tokens, sequence_length, seed, epoch)
