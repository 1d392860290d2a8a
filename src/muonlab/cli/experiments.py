"""From the names on a command line to experiments: built-in ones, and those of a user's file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muonlab.errors import UserError
from muonlab.spelling import did_you_mean

if TYPE_CHECKING:
    from muonlab.lab.experiment import Experiment


def chosen(names: Sequence[str], scale: str | None) -> "list[Experiment]":
    """The experiments of these names and files, all built-in ones without; raises UserError."""
    from muonlab.papers import EXPERIMENTS

    found: list[Experiment] = []
    for name in names or EXPERIMENTS:
        found += _own(Path(name), scale) if name.endswith(".py") else [_built_in(name, scale)]
    return found


def _built_in(name: str, scale: str | None) -> "Experiment":
    from muonlab.lab.experiment import SCALES
    from muonlab.papers import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise UserError(
            f"study {name!r} is unknown; {did_you_mean(name, EXPERIMENTS)}"
            f"legal: {', '.join(EXPERIMENTS)}, or a file such as my_study.py"
        )
    if scale is not None and scale not in SCALES:
        raise UserError(
            f"scale {scale!r} is unknown; {did_you_mean(scale, SCALES)}legal: {', '.join(SCALES)}"
        )
    return EXPERIMENTS[name](scale or "small")


def _own(path: Path, scale: str | None) -> "list[Experiment]":
    from muonlab.lab.study_file import read_studies
    from muonlab.papers import EXPERIMENTS

    found = read_studies(path, scale)
    for experiment in found:
        if experiment.name in EXPERIMENTS:
            raise UserError(f"{path}: a built-in study is called {experiment.name!r}; rename yours")
    return found
