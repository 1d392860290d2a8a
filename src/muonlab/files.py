"""Writing files so that they are never seen half-written."""

import json
import os
from pathlib import Path
from typing import Any


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
