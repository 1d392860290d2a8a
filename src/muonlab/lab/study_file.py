"""Studies of a user's own: a Python file that defines a Study, a Measurement, or several."""

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from muonlab import user_code
from muonlab.errors import UserError
from muonlab.lab.experiment import Experiment, Measurement, Study


def read_studies(path: Path, scale: str | None = None) -> list[Experiment]:
    """The experiments of a file: those that stand in it, and those that functions of it return.

    A function of a single parameter ``scale`` is called with ``scale``, or if that is None with its
    own default, else ``"small"``. An experiment that stands in the file has a scale of its own.
    Raises UserError: a mistake in the file is one line that says where.
    """
    module = user_code.run_file(path)
    found = [*_standing(module), *_returned(module, path, scale)]
    if not found:
        raise UserError(
            f"{path} defines no study; it must have a Study, a Measurement, or a function "
            f"study(scale) that returns one"
        )
    names = Counter(experiment.name for experiment in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{path} defines two studies of the name {twice[0]!r}")
    for experiment in found:
        if scale not in (None, experiment.scale):
            raise UserError(
                f"{path} defines {experiment.name} at scale {experiment.scale}, not {scale}; "
                f"a function study(scale) would offer several"
            )
    return [_of_file(experiment, path) for experiment in found]


def _standing(module: ModuleType) -> list[Experiment]:
    values = (value for name, value in vars(module).items() if name[0] != "_")
    found = {id(value): value for value in values if isinstance(value, Study | Measurement)}
    return list(found.values())


def _returned(module: ModuleType, path: Path, scale: str | None) -> Iterator[Experiment]:
    for name, function in user_code.functions_of(module).items():
        parameters = inspect.signature(function).parameters
        if list(parameters) != ["scale"]:
            continue
        chosen = [scale] if scale is not None else []
        if not chosen and parameters["scale"].default is inspect.Parameter.empty:
            chosen = ["small"]
        with user_code.one_line_errors(f"{path}:{name}", str(path)):
            made = function(*chosen)
        if isinstance(made, Study | Measurement):
            yield made


def _of_file(experiment: Experiment, path: Path) -> Experiment:
    """The experiment as one of that file, whose functions fail in one line."""
    functions: dict[str, Any] = {
        name: _guarded(value, path)
        for name in ("judge", "measure", "draw")
        if (value := getattr(experiment, name, None)) is not None
    }
    command = f"muonlab study run {path} --scale {experiment.scale}"
    return dataclasses.replace(experiment, command=command, **functions)


def _guarded(function: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with user_code.one_line_errors(str(path), str(path)):
            return function(*arguments)

    return call
