"""Files of a run that are never seen half-written, and the one line that says what is wrong."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muonlab.errors import UserError


class RunError(UserError):
    """A run directory that cannot serve: one line naming the path and what is wrong."""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen half-written."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def as_json(values: dict[str, Any]) -> str:
    """Indented, with a line's end."""
    return json.dumps(values, indent=2) + "\n"


def flush(path: Path) -> None:
    """Wait until the disk has the file, or the names in the directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn an error of writing ``path`` into a RunError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {error.filename or path}: {reason}") from error
