"""The token cache on disk: one memory-mapped shard per split, checksums, all or nothing.

<directory>/manifest.json            sizes, checksums, counts; carries its own checksum
            tokenizer.json
            <stream>.tokens          uint16 or uint32, document after document
            <stream>.offsets         int64, document d is tokens[offsets[d]:offsets[d + 1]]

A stream is a split; of several sources, each has a training stream of its own: ``train.0`` ….
"""

import array
import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from muonlab.data.splits import SPLIT_NAMES
from muonlab.files import flush

FORMAT_VERSION = 1


class CacheDamagedError(Exception):
    """A token cache that is missing, incomplete or changed; it has to be built again."""


class ShardWriter:
    """Writes a token cache aside and gives it its name only when it is whole.

    A context; left without `finish`, it removes what it wrote. Not for two writers at once.
    """

    def __init__(
        self, directory: Path, vocab_size: int, streams: Sequence[str] = SPLIT_NAMES
    ) -> None:
        self.directory = directory
        self.aside = directory.with_name(directory.name + ".partial")
        shutil.rmtree(self.aside, ignore_errors=True)  # of a writer that was killed
        self.aside.mkdir(parents=True)
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.offsets = {name: array.array("q", [0]) for name in streams}
        self.text_bytes = dict.fromkeys(streams, 0)
        self._stack = contextlib.ExitStack()
        self._files = {
            name: self._stack.enter_context((self.aside / f"{name}.tokens").open("wb"))
            for name in streams
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the rest of the buffers again
            self._stack.close()
        shutil.rmtree(self.aside, ignore_errors=True)

    @property
    def num_tokens(self) -> int:
        """Tokens written so far, over all splits."""
        return sum(offsets[-1] for offsets in self.offsets.values())

    def append(self, stream: str, ids: Sequence[int], text_bytes: int) -> None:
        """Add one document to a stream: its tokens and the bytes of its text in UTF-8."""
        self._files[stream].write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.offsets[stream].append(self.offsets[stream][-1] + len(ids))
        self.text_bytes[stream] += text_bytes

    def finish(self, tokenizer_json: str) -> None:
        """Write the manifest, force everything to the disk, rename into place."""
        self._stack.close()
        for name in self.offsets:
            (self.aside / f"{name}.offsets").write_bytes(self.offsets[name].tobytes())
        (self.aside / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        manifest: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "text_bytes": self.text_bytes,
            "files": {file.name: _describe(file) for file in sorted(self.aside.iterdir())},
        }
        (self.aside / "manifest.json").write_bytes(_manifest_content(manifest))
        for path in (*self.aside.iterdir(), self.aside):
            flush(path)
        shutil.rmtree(self.directory, ignore_errors=True)  # a damaged one
        self.aside.rename(self.directory)
        flush(self.directory.parent)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a whole and unchanged token cache; raises `CacheDamagedError` otherwise.

    Reads every byte (1.3 GB/s on one core): a run that starts on silently changed tokens
    costs more than that.
    """
    try:
        content = (directory / "manifest.json").read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != FORMAT_VERSION:
            raise CacheDamagedError(f"{directory}: written in format {manifest['format']}")
        del manifest["checksum"]
        if content != _manifest_content(manifest):
            raise CacheDamagedError(f"{directory}: manifest.json has changed")
        for name, expected in manifest["files"].items():
            path = directory / name
            if path.stat().st_size != expected["size_bytes"] or _describe(path) != expected:
                raise CacheDamagedError(f"{directory}: {name} has changed")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheDamagedError(f"{directory}: not a whole token cache ({error})") from None
    return manifest


def open_shard(path: Path, dtype: str) -> np.ndarray:
    """A shard's numbers, memory-mapped, read-only."""
    if path.stat().st_size == 0:  # which no system maps
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}


def _manifest_content(manifest: dict[str, Any]) -> bytes:
    """A manifest as it stands on disk, with its own checksum in it."""
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(manifest | {"checksum": checksum}, indent=1, sort_keys=True).encode()
