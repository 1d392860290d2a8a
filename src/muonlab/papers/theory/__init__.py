"""The papers' theorems as checks: each is a measurement with a figure, and can fail."""

from collections.abc import Callable

from muonlab.lab.experiment import Measurement, Scale
from muonlab.papers.theory import ntk, rate, spectral, steepest, stiefel

CHECKS: dict[str, Callable[[Scale], Measurement]] = {
    f"theory-{module.__name__.rpartition('.')[2]}": module.check
    for module in (rate, spectral, stiefel, steepest, ntk)
}
