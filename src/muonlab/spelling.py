"""A hint for a name that is nearly right."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, legal: Iterable[str]) -> str:
    """``"did you mean nano? "`` for the legal name that is closest, empty if none is close."""
    close = difflib.get_close_matches(name, list(legal), n=1)
    return f"did you mean {close[0]}? " if close else ""
