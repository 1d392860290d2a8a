"""Where things are kept that can be made again: one cache per user, for every directory."""

import os
import sys
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/muonlab``, or the system's usual place where that is not set.

    Linux ``~/.cache/muonlab``, macOS ``~/Library/Caches/muonlab``, Windows
    ``%LOCALAPPDATA%\\muonlab``; a user without a home directory has ``cache`` where they work.
    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG standard asks.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():
        return chosen / "muonlab"
    try:
        home = Path.home()
    except RuntimeError:
        return Path("cache")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "muonlab"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "muonlab"


def corpora() -> Path:
    """The directory of encoded corpora."""
    return user_cache() / "corpora"
