import dataclasses
import errno
import json
import multiprocessing
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invented_corpus import invent_documents, write_jsonl

from muonlab.data import DataConfig, DataError, DocumentSplit, LocalConfig, TokenizerFile, TrainBPE
from muonlab.data.shards import CacheDamagedError, ShardWriter, open_shard, read_manifest

FILES = ["manifest.json", "tokenizer.json"] + [
    f"{split}.{kind}" for split in ("train", "validation", "test") for kind in ("tokens", "offsets")
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    with ShardWriter(directory, vocab_size=300) as writer:
        for index, split in enumerate(("train", "train", "validation", "test")):
            writer.append(split, list(range(index, 299)), text_bytes=500)
        writer.finish("{}")
    return directory


def test_second_prepare_opens_the_first(config: DataConfig, tmp_path: Path) -> None:
    first = config.prepare(tmp_path, progress=False)
    written = first.directory.stat().st_mtime_ns
    second = config.prepare(tmp_path, progress=False)
    assert second.directory.stat().st_mtime_ns == written
    assert second.data_hash == first.data_hash
    assert sorted(path.name for path in first.directory.iterdir()) == sorted(FILES)


def test_same_content_elsewhere_is_the_same_data(
    config: DataConfig, documents: list[str], tmp_path: Path
) -> None:
    data = config.prepare(tmp_path / "a", progress=False)
    copy = LocalConfig(path=write_jsonl(tmp_path / "copy.jsonl", documents))
    same = DataConfig(source=copy, tokenizer=config.tokenizer, split=config.split)
    assert same.cache_key() == config.cache_key()
    threads = same.prepare(tmp_path / "b", num_workers=7, progress=False)
    assert threads.data_hash == data.data_hash


def test_every_option_has_its_own_cache(config: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    other = LocalConfig(path=write_jsonl(tmp_path / "other.jsonl", ["something else"]))
    variants = [
        config,
        DataConfig(source=other, tokenizer=config.tokenizer, split=config.split),
        DataConfig(source=config.source, tokenizer=TrainBPE(vocab_size=301), split=config.split),
        DataConfig(source=config.source, tokenizer=TokenizerFile(path=path), split=config.split),
        DataConfig(source=config.source, split=DocumentSplit(salt="s"), tokenizer=config.tokenizer),
        DataConfig(source=config.source, split=config.split, max_tokens=9),
        DataConfig(source=config.source, split=config.split, max_documents=9),
        DataConfig(source=config.source, split=config.split, max_characters_per_document=9),
    ]
    assert len({variant.cache_key() for variant in variants}) == len(variants)


def test_limits(config: DataConfig, documents: list[str], tmp_path: Path) -> None:
    limited = DataConfig(
        source=config.source,
        tokenizer=config.tokenizer,
        split=config.split,
        max_documents=40,
        max_characters_per_document=30,
        max_tokens=500,
    )
    assert list(limited.documents()) == [text[:30] for text in documents[:40]]
    data = limited.prepare(tmp_path, progress=False)
    assert sum(data.num_tokens(split) for split in ("train", "validation", "test")) == 500


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(1, 64), st.integers(0, 2**32))
def test_any_changed_bytes_are_noticed(
    cache: Path, name: str, position: int, length: int, seed: int
) -> None:
    path = cache / name
    content = path.read_bytes()
    position %= len(content)
    noise = random.Random(seed).randbytes(len(content[position : position + length]))
    changed = content[:position] + noise + content[position + length :]
    path.write_bytes(changed)
    try:
        if changed != content:
            with pytest.raises(CacheDamagedError):
                read_manifest(cache)
    finally:
        path.write_bytes(content)
    read_manifest(cache)


@pytest.mark.parametrize("name", FILES)
def test_cut_longer_or_missing_files_are_noticed(cache: Path, name: str) -> None:
    path = cache / name
    content = path.read_bytes()
    for changed in (b"", content[:-1], content[: len(content) // 2], content + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(CacheDamagedError):
            read_manifest(cache)
    path.unlink()
    with pytest.raises(CacheDamagedError):
        read_manifest(cache)


def test_another_format_is_not_read(cache: Path) -> None:
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CacheDamagedError, match="written in format 99"):
        read_manifest(cache)


def test_damaged_cache_is_built_again(
    config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = config.prepare(tmp_path, progress=False)
    shard = data.directory / "train.tokens"
    content = shard.read_bytes()
    assert not caplog.records
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    again = config.prepare(tmp_path, progress=False)
    assert "train.tokens has changed; building it again" in caplog.text
    assert shard.read_bytes() == content
    assert again.data_hash == data.data_hash


def test_tokenizer_of_another_corpus_is_noticed(config: DataConfig, tmp_path: Path) -> None:
    data = config.prepare(tmp_path, progress=False)
    foreign = TrainBPE(vocab_size=300).build(invent_documents(50, seed=7)).to_json()
    (data.directory / "tokenizer.json").write_text(foreign, encoding="utf-8")
    again = config.prepare(tmp_path, progress=False)
    assert again.tokenizer.to_json() == data.tokenizer.to_json() != foreign


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    directory = tmp_path / "cache"
    with ShardWriter(directory, vocab_size) as writer:
        writer.append("train", [0, vocab_size - 1], text_bytes=2)
        writer.finish("{}")
    tokens = open_shard(directory / "train.tokens", read_manifest(directory)["dtype"])
    assert tokens.dtype == dtype
    assert tokens.tolist() == [0, vocab_size - 1]


KILLED_WRITER = """
import os, sys
from pathlib import Path
from muonlab.data import DataConfig, LocalConfig, TrainBPE
from muonlab.data.shards import ShardWriter

def die(writer, *_):
    (writer.aside / "train.tokens").write_bytes(b"half of it")
    os.kill(os.getpid(), 9)

ShardWriter.finish = die
source = LocalConfig(path=Path(sys.argv[1]))
DataConfig(source=source, tokenizer=TrainBPE(vocab_size=300)).prepare(Path(sys.argv[2]))
"""


def test_killed_in_the_middle(documents: list[str], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "corpus.jsonl", documents)
    cache_dir = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED_WRITER, str(path), str(cache_dir)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    config = DataConfig(source=LocalConfig(path=path), tokenizer=TrainBPE(vocab_size=300))
    assert (cache_dir / f"{config.cache_key()}.partial").exists()
    data = config.prepare(cache_dir, progress=False)
    assert sorted(path.suffix for path in cache_dir.iterdir()) == ["", ".lock"]
    assert data.data_hash == config.prepare(tmp_path / "clean", progress=False).data_hash


def prepare_and_hash(config: DataConfig, cache_dir: Path, results: multiprocessing.Queue) -> None:
    results.put(config.prepare(cache_dir, progress=False).data_hash)


def test_two_processes_at_once(config: DataConfig, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (config, tmp_path, results)
    processes = [context.Process(target=prepare_and_hash, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    hashes = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert hashes == {config.prepare(tmp_path / "alone", progress=False).data_hash}


def test_full_disk_is_one_line_and_leaves_nothing(config: DataConfig, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows limits no process's files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"^\S+: File too large$"):
            config.prepare(tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    config.prepare(tmp_path, progress=False)


def test_unusable_places_are_one_line(config: DataConfig, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=rf"^{file}/\S+: Not a directory$"):
        config.prepare(file, progress=False)
    missing = DataConfig(source=LocalConfig(path=tmp_path / "no.txt"))
    with pytest.raises(DataError, match=rf"^{tmp_path}/no.txt: No such file or directory$"):
        missing.prepare(tmp_path, progress=False)


def test_no_permission_is_one_line(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, whom no mode stops, runs tests too
    with pytest.raises(DataError, match=rf"^{tmp_path}/cache: Permission denied$"):
        config.prepare(tmp_path / "cache", progress=False)


def test_corpus_without_enough_documents(tmp_path: Path) -> None:
    empty = write_jsonl(tmp_path / "empty.jsonl", ["", ""])
    config = DataConfig(source=LocalConfig(path=empty))
    with pytest.raises(DataError, match="the train split holds none of the corpus's 0 documents"):
        config.prepare(tmp_path, progress=False)
    single = write_jsonl(tmp_path / "single.jsonl", ["one document"])
    config = DataConfig(source=LocalConfig(path=single))
    with pytest.raises(DataError, match="the validation split holds none of the corpus's 1 doc"):
        config.prepare(tmp_path, progress=False)


def test_illegal_limits() -> None:
    for name in ("max_documents", "max_characters_per_document", "max_tokens"):
        with pytest.raises(ValueError, match=f"^{name}=0: expected at least 1, or null"):
            dataclasses.replace(DataConfig(), **{name: 0})


def test_progress_shows_rate_and_time_left(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config.prepare(tmp_path)
    shown = capsys.readouterr().err
    num_tokens = sum(data.num_tokens(split) for split in ("train", "validation", "test"))
    assert "encoding" in shown
    assert f"{num_tokens:,} tokens" in shown
    assert "/s" in shown
    config.prepare(tmp_path)
    assert capsys.readouterr().err == ""
