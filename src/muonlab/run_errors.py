"""The one line that says what is wrong with a run directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from muonlab.errors import UserError


class RunError(UserError):
    """A run directory that cannot serve: one line naming the path and what is wrong."""


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn an error of writing ``path`` into a RunError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {error.filename or path}: {reason}") from error
