"""Train, compare and run small Mixture-of-Experts language models with the Muon optimizer.

The optimizer alone: ``from muonlab.optim import Muon, build_groups`` (imports torch only).
A trained model: ``muonlab.load("runs/…")``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muonlab.loading import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, whose libraries are imported when it is first asked for."""
    if name == "load":
        from muonlab.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
