"""A text from standard input, kept so that it can be read again: a run must find its corpus."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from muonlab.data.errors import DataError

MAX_BYTES = 4 << 30  # a stream that never ends must not fill the disk
PIECE_BYTES = 1 << 20


def keep_standard_input(directory: Path, stream: BinaryIO) -> Path:
    """Copy standard input into ``directory``, under a name that follows from its content."""
    digest, size = hashlib.sha256(), 0
    aside = directory / f".{os.getpid()}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as copy:
            while piece := stream.read(PIECE_BYTES):
                size += len(piece)
                if size > MAX_BYTES:
                    raise DataError(
                        f"standard input: more than {MAX_BYTES >> 30} GiB; "
                        f"write it to a file and name the file"
                    )
                digest.update(piece)
                copy.write(piece)
        if size == 0:
            raise DataError("standard input: it is empty, expected text")
        return aside.rename(directory / f"{digest.hexdigest()[:16]}.txt")
    except OSError as error:
        raise DataError(f"{directory}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
