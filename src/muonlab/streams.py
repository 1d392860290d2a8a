"""Standard output and standard error that outlive their reader."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TextIO


class LastingStream:
    """A stream whose terminal may be closed: from then on it says nothing, and nothing fails.

    The same goes for a pipe whose reader leaves, unless ``pipe_errors`` wants to be told.
    """

    def __init__(self, stream: TextIO, *, pipe_errors: bool = False) -> None:
        self.stream = stream
        self.pipe_errors = pipe_errors

    def write(self, text: str) -> int:
        with self._silenced_on_error():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silenced_on_error():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _silenced_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.pipe_errors and isinstance(error, BrokenPipeError):
                raise
            silence(self.stream)


def silence(stream: TextIO) -> None:
    """Lead a stream that can no longer be written to nowhere, with what it still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
