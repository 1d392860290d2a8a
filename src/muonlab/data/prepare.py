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
from muonlab.data.sources import BuiltinConfig, Source
from muonlab.data.splits import DocumentSplit, Split
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
        texts = (text for text in self.source.documents() if text)
        for text in itertools.islice(texts, self.max_documents):
            yield text[: self.max_characters_per_document]

    def _open(self, directory: Path) -> TokenData:
        return TokenData(directory, self.split, self.tokenizer.end_of_text)

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
            with ShardWriter(directory, tokenizer.vocab_size) as writer:
                for text, ids in _encoded(self.documents(), tokenizer, num_workers):
                    has_room = self._append(writer, tokenizer, text, ids)
                    rate = writer.num_tokens / (time.perf_counter() - start)
                    done = self._progress_done(writer)
                    bar.update(task, completed=done, num_tokens=writer.num_tokens, rate=rate)
                    if not has_room:
                        break
                self._check(writer)
                writer.finish(tokenizer.to_json())

    def _append(
        self, writer: ShardWriter, tokenizer: TextTokenizer, text: str, ids: list[int]
    ) -> bool:
        """Write one document, or what fits of it; whether there is room for another."""
        split = self.split.assign(text)
        if self.split.end_of_text:
            ids = [*ids, tokenizer.eot_id]
        room = math.inf if self.max_tokens is None else self.max_tokens - writer.num_tokens
        if len(ids) > room:
            ids = ids[: int(room)]
            text = tokenizer.decode(ids)
        writer.append(split, ids, len(text.encode()))
        return len(ids) < room

    def _check(self, writer: ShardWriter) -> None:
        num_documents = {name: len(offsets) - 1 for name, offsets in writer.offsets.items()}
        total = sum(num_documents.values())
        for name in self.split.needed_streams():
            if num_documents[name] == 0:
                raise DataError(
                    f"the {name} split holds none of the corpus's {total} documents; "
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
    documents: Iterator[str], tokenizer: TextTokenizer, num_workers: int
) -> Iterator[tuple[str, list[int]]]:
    with ThreadPoolExecutor(num_workers) as pool:
        while chunk := list(itertools.islice(documents, num_workers * DOCUMENTS_PER_WORKER)):
            yield from zip(chunk, pool.map(tokenizer.encode, chunk), strict=True)
