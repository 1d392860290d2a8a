"""Python that a user names, as ``package.module:name`` or ``path/to/file.py:name``.

Finding and hashing it executes nothing. A mistake in it is one line that says where.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from muonlab.errors import UserError
from muonlab.spelling import did_you_mean


class UserCodeError(UserError):
    """Code of the user's that is not there or fails: the line names the file and the mistake."""


def source_hash(place: str) -> str:
    """SHA-256 of the source of a file, or of all Python files of the package of a module.

    ``place``: ``path/to/file.py`` or ``package.module``. What the source imports from elsewhere is
    not part of it. Raises UserCodeError where there is no such source.
    """
    digest = hashlib.sha256()
    for path in _source_files(place):
        digest.update(hashlib.sha256(_read(path)).digest())
    return digest.hexdigest()


def load(place: str) -> types.ModuleType:
    """The module of that file or name, executed; raises UserCodeError."""
    return run_file(Path(place)) if place.endswith(".py") else _import(place)


def run_file(path: Path) -> types.ModuleType:
    """Execute a Python file, which may import its neighbours, as a module of its own."""
    module = types.ModuleType(str(path))
    module.__file__ = str(path)
    source = _read(path)
    sys.modules[str(path)] = module  # where dataclasses of the file look for it
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        with one_line_errors(str(path), str(path)):
            exec(compile(source, path, "exec"), module.__dict__)
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def functions_of(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a file itself defines; a leading underscore keeps one private."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }


def attribute_of(module: types.ModuleType, name: str, place: str) -> Any:
    """What a module calls ``name``; raises UserCodeError that suggests a similar name."""
    if not hasattr(module, name):
        public = [other for other in vars(module) if other[0] != "_"]
        hint = did_you_mean(name, public) or f"name one, as in {place}:make"
        raise UserCodeError(f"{place} has no {name!r}; {hint}".rstrip())
    return getattr(module, name)


@contextlib.contextmanager
def one_line_errors(what: str, file: str | None) -> Iterator[None]:
    """Turn any exception of a user's code into a UserCodeError with the line of its ``file``."""
    try:
        yield
    except SyntaxError as error:
        where = f"{error.filename or what}, line {error.lineno}" if error.lineno else what
        raise UserCodeError(f"{where}: {error.msg}: {(error.text or '').strip()}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        where = f"{file}, line {lines[-1]}" if lines else what
        raise UserCodeError(f"{where}: {type(error).__name__}: {error}") from error


def _import(name: str) -> types.ModuleType:
    with one_line_errors(name, _find(name).origin), _working_directory_last():
        return importlib.import_module(name)


@contextlib.contextmanager
def _working_directory_last() -> Iterator[None]:
    """Modules may lie where the user works, as for ``python -m``, but hide no installed one."""
    here = os.getcwd()  # noqa: PTH109 (entries of sys.path are text)
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)
        sys.path.reverse()


def _source_files(place: str) -> list[Path]:
    if place.endswith(".py"):
        return [Path(place)]
    spec = _find(place)
    if spec.origin is None or not Path(spec.origin).is_file():
        raise UserCodeError(f"module {place!r} has no source file; name another module")
    origin = Path(spec.origin)
    if "." in place or spec.submodule_search_locations:
        return sorted(origin.parent.rglob("*.py"))
    return [origin]


def _find(name: str) -> ModuleSpec:
    """Where a module is, without importing its packages, which would execute them."""
    top, *rest = name.split(".")
    with _working_directory_last():
        try:
            spec = importlib.util.find_spec(top)
        except ValueError:  # such as __main__
            spec = None
        path = top
        for part in rest:
            if spec is None:
                break
            path = f"{path}.{part}"
            spec = PathFinder.find_spec(path, spec.submodule_search_locations or [])
    if spec is None:
        raise UserCodeError(
            f"module {name!r} was not found; install it, or name a file: path/to/file.py:make"
        )
    return spec


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserCodeError(f"{path}: {error.strerror or error}") from None
