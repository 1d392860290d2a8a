"""From text to a token cache: `DataConfig` says what the data is, `prepare` makes or opens it."""

import contextlib
import hashlib
import itertools
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import rich.console
import rich.progress

from muonlab.data.errors import DataError
from muonlab.data.shards import FORMAT_VERSION, CacheDamagedError, ShardWriter
from muonlab.data.sources import BuiltinConfig, MixtureConfig, Source, take_turns
from muonlab.data.splits import SPLIT_NAMES, DocumentSplit, Split
from muonlab.data.tokenizer import TextTokenizer, TokenizerConfig, TrainBPE
from muonlab.data.tokens import TokenData
from muonlab.places import corpora

DOCUMENTS_PER_WORKER = 16  # in flight

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A corpus, its tokenizer, its split, and how much of it is used.

    ``max_tokens`` counts over all splits; the document that crosses it is cut.
    """

    source: Source = field(default_factory=BuiltinConfig)
    tokenizer: TokenizerConfig = field(default_factory=TrainBPE)
    split: Split = field(default_factory=DocumentSplit)
    max_documents: int | None = None
    max_characters_per_document: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_documents", "max_characters_per_document", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or null for no limit")
        if len(self.source.parts) > 1 and not self.split.takes_mixtures:
            raise ValueError(f"split is {self.split.kind}, which takes one source, no mixture")

    def prepare(
        self,
        cache_dir: Path | None = None,
        *,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> TokenData:
        """Open the token cache of this config below ``cache_dir``, building it where needed.

        None: the user's cache, for every directory the same (`muonlab.places.corpora`).
        A cache that is missing, unfinished or damaged is built by ``num_workers`` threads (all
        cores by default); of several processes one builds and the others wait. Raises `DataError`.
        """
        cache_dir = cache_dir or corpora()
        try:
            directory = cache_dir / self.cache_key()
            with contextlib.suppress(CacheDamagedError):
                return self._open(directory)
            cache_dir.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{directory}.lock"):
                try:
                    return self._open(directory)  # another process was faster
                except CacheDamagedError as damage:
                    if directory.exists():
                        logger.warning("%s; building it again", damage)
                    self._build(directory, num_workers or os.cpu_count() or 1, progress)
                    return self._open(directory)
        except OSError as error:
            where = error.filename or cache_dir  # a full disk does not say which file
            raise DataError(f"{where}: {error.strerror or error}") from error

    def cache_key(self) -> str:
        """The name of this data's cache: a hash of its content, its tokenizer and its options."""
        parts = (
            FORMAT_VERSION,
            self.source.fingerprint(),
            self.tokenizer.fingerprint(),
            self.split,
            (self.max_documents, self.max_characters_per_document, self.max_tokens),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def documents(self) -> Iterator[str]:
        """The documents within the limits, without empty ones."""
        return (text for _, text in self._numbered_documents())

    def _numbered_documents(self) -> Iterator[tuple[int, str]]:
        """The documents, with the number of the source that each is of."""
        for number, text in itertools.islice(take_turns(self.source.parts), self.max_documents):
            yield number, text[: self.max_characters_per_document]

    def _streams(self) -> list[str]:
        num_sources = len(self.source.parts)
        if num_sources == 1:
            return list(SPLIT_NAMES)
        return [f"train.{number}" for number in range(num_sources)] + ["validation", "test"]

    def _open(self, directory: Path) -> TokenData:
        weights = self.source.weights if isinstance(self.source, MixtureConfig) else None
        return TokenData(directory, self.split, self.tokenizer.end_of_text, weights)

    def _build(self, directory: Path, num_workers: int, progress: bool) -> None:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[num_tokens]:,} tokens"),
            rich.progress.TextColumn("{task.fields[rate]:,.0f}/s"),
            rich.progress.TimeRemainingColumn(),
        )
        console = rich.console.Console(stderr=True)
        with rich.progress.Progress(*columns, console=console, disable=not progress) as bar:
            task = bar.add_task("training the tokenizer", total=None, num_tokens=0, rate=0)
            training = (text for text in self.documents() if self.split.assign(text) == "train")
            tokenizer = self.tokenizer.build(training)
            start = time.perf_counter()
            bar.reset(task, description="encoding", total=self._progress_total())
            with ShardWriter(directory, tokenizer.vocab_size, self._streams()) as writer:
                documents = _encoded(self._numbered_documents(), tokenizer, num_workers)
                for number, text, ids in documents:
                    has_room = self._append(writer, tokenizer, number, text, ids)
                    rate = writer.num_tokens / (time.perf_counter() - start)
                    done = self._progress_done(writer)
                    bar.update(task, completed=done, num_tokens=writer.num_tokens, rate=rate)
                    if not has_room:
                        break
                self._check(writer)
                if self.cache_key() != directory.name:
                    raise DataError("the corpus has changed while it was read; run it again")
                writer.finish(tokenizer.to_json())

    def _append(
        self,
        writer: ShardWriter,
        tokenizer: TextTokenizer,
        source: int,
        text: str,
        ids: list[int],
    ) -> bool:
        """Write one document, or what fits of it; whether there is room for another."""
        stream: str = self.split.assign(text)
        if stream == "train" and len(self.source.parts) > 1:
            stream = f"train.{source}"
        if self.split.end_of_text:
            ids = [*ids, tokenizer.eot_id]
        room = math.inf if self.max_tokens is None else self.max_tokens - writer.num_tokens
        if len(ids) > room:
            ids = ids[: int(room)]
            text = tokenizer.decode(ids)
        writer.append(stream, ids, len(text.encode()))
        return len(ids) < room

    def _check(self, writer: ShardWriter) -> None:
        num_documents = {name: len(offsets) - 1 for name, offsets in writer.offsets.items()}
        total = sum(num_documents.values())
        needed = self.split.needed_streams()
        for stream, count in num_documents.items():
            split, _, source = stream.partition(".")
            if split in needed and count == 0:
                where = f" of data.source.sources.{source}" if source else ""
                raise DataError(
                    f"the {split} split{where} holds none of the corpus's {total} documents; "
                    f"give it more documents, a larger fraction or another salt"
                )

    def _progress_total(self) -> int | None:
        return self.max_tokens or self.max_documents or self.source.size_bytes()

    def _progress_done(self, writer: ShardWriter) -> int:
        if self.max_tokens:
            return writer.num_tokens
        if self.max_documents:
            return sum(len(offsets) - 1 for offsets in writer.offsets.values())
        return sum(writer.text_bytes.values())


def _encoded(
    documents: Iterator[tuple[int, str]], tokenizer: TextTokenizer, num_workers: int
) -> Iterator[tuple[int, str, list[int]]]:
    with ThreadPoolExecutor(num_workers) as pool:
        while chunk := list(itertools.islice(documents, num_workers * DOCUMENTS_PER_WORKER)):
            numbers, texts = zip(*chunk, strict=True)
            yield from zip(numbers, texts, pool.map(tokenizer.encode, texts), strict=True)
