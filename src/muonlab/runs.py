"""The run directory: what a run leaves on disk, and how it is found again.

    config.json      complete and reloadable
    manifest.json    code, versions, machine, data, warnings
    metrics.jsonl    flat rows
    checkpoints/step-00000500/{model.safetensors, optimizer.pt, state.json}
    summary.json     written last: present means finished

Files are written aside, flushed to disk and renamed: what is present is whole. A disk that fills
up or a process that dies leaves the previous checkpoint as it was.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch
from torch import nn

from muonlab.config import ConfigError, RunConfig, from_json, to_json


class RunError(ValueError):
    """A run directory that cannot serve: one line naming the path and what is wrong."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Training state after ``step`` updates."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]  # what the loop needs besides weights: dtype, seconds, counters


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def place(cls, root: Path, config: RunConfig) -> "RunDirectory":
        """Where this config's run belongs below ``root``."""
        label = f"{config.variant}-s{config.seed}-{config.fingerprint()[:8]}"
        return cls(root / config.name / label)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists()

    def check_is_of(self, config: RunConfig) -> None:
        """Raise RunError unless this is an untouched run of ``config``."""
        found = self.config().fingerprint()
        if found != config.fingerprint():
            raise RunError(f"{self.path} is the run of another config")
        if found != self.manifest().get("fingerprint"):
            raise RunError(f"{self.path}/config.json was changed after the run began")

    def create(self, config: RunConfig, manifest: dict[str, Any]) -> None:
        """Start a run in a new directory."""
        with _one_line_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "manifest.json", _json(manifest))
            write_whole(self.path / "config.json", to_json(config))

    def config(self) -> RunConfig:
        """The run's config; raises RunError where there is none or it is damaged."""
        path = self.path / "config.json"
        if not path.is_file():
            raise RunError(f"{self.path} is no run directory: it has no config.json")
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from None

    def manifest(self) -> dict[str, Any]:
        return self._read_json("manifest.json")

    def summary(self) -> dict[str, Any]:
        return self._read_json("summary.json")

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        with _one_line_errors(self.path):
            write_whole(self.path / "summary.json", _json(summary))

    def status(self) -> str:
        """``finished``, ``running``, ``interrupted`` (has a checkpoint) or ``started``."""
        if (self.path / "summary.json").exists():
            return "finished"
        try:
            with self.lock():
                return "interrupted" if self.checkpoint_steps() else "started"
        except RunError:
            return "running"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; raises RunError if another one holds it."""
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunError(f"{self.path} is in use by another process") from None
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    # -- metrics ---------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, float | int]) -> None:
        """Add one flat row; it survives a killed process once this returns."""
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        with _one_line_errors(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line cut by a crash is left out, any other damage raises RunError."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise RunError(f"{path}, line {number}: not JSON") from None
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows after ``step``: a resumed run writes them again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        with _one_line_errors(self.path):
            write_whole(
                self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
            )

    # -- checkpoints -----------------------------------------------------------------------------

    def checkpoint_steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.checkpoints.glob("step-*"))

    def save_checkpoint(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        keep: int,
    ) -> None:
        """Write a checkpoint aside and rename it; then drop all but the newest ``keep``.

        Raises RunError if it cannot be written; earlier checkpoints are then untouched.
        """
        target = self.checkpoints / f"step-{step:08d}"
        if target.exists():
            return
        aside = self.checkpoints / f".writing-{step:08d}"
        with _one_line_errors(aside):
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                _save_model(model, aside / "model.safetensors")
                torch.save(optimizer.state_dict(), aside / "optimizer.pt")
                sizes = {file.name: file.stat().st_size for file in aside.iterdir()}
                state = {"step": step, "progress": progress, "bytes": sizes}
                (aside / "state.json").write_text(_json(state))
                for file in aside.iterdir():
                    _flush(file)
                aside.rename(target)
                _flush(self.checkpoints)
            except (OSError, RuntimeError, safetensors.SafetensorError) as error:
                # torch and safetensors wrap a full disk in errors of their own
                shutil.rmtree(aside, ignore_errors=True)
                raise OSError(getattr(error, "errno", None), str(error).splitlines()[0]) from error
        for old in self.checkpoint_steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"step-{old:08d}")

    def load_checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest; raises RunError if absent or damaged."""
        steps = self.checkpoint_steps()
        if not steps:
            raise RunError(f"{self.path} has no checkpoint yet")
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            raise RunError(f"{self.path} has no checkpoint of step {step}; it has {steps}")
        path = self.checkpoints / f"step-{chosen:08d}"
        try:
            state = json.loads((path / "state.json").read_text())
            for name, size in state["bytes"].items():
                found = (path / name).stat().st_size
                if found != size:
                    raise RunError(f"{path / name} is damaged: {found} bytes, {size} expected")
            return Checkpoint(
                step=state["step"],
                model=safetensors.torch.load_file(path / "model.safetensors"),
                optimizer=torch.load(path / "optimizer.pt", weights_only=True),
                progress=state["progress"],
            )
        except RunError:
            raise
        except Exception as error:  # every reader has its own kinds of complaint
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"{path} is damaged or no checkpoint: {reason}") from None

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{path} does not exist") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path} is damaged: {error}") from None


def find_runs(root: Path) -> list[RunDirectory]:
    """Every run below ``root``, by path."""
    return [RunDirectory(path.parent) for path in sorted(root.rglob("config.json"))]


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Put ``weights`` into the model; raises RunError naming the first thing that does not fit."""
    expected = _tensors(model)
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise RunError(f"{source}: it lacks {name}, which the model has")
        if name not in expected:
            raise RunError(f"{source}: it has {name}, which the model lacks")
        if expected[name].shape != weights[name].shape:
            raise RunError(
                f"{source}: {name} is {tuple(weights[name].shape)}, "
                f"the model's is {tuple(expected[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen half-written."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.write_text(text, encoding="utf-8")
        _flush(aside)
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def now() -> str:
    """UTC time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, shared ones once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _save_model(model: nn.Module, path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(model).items()}
    safetensors.torch.save_file(tensors, path)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {error.filename or path}: {reason}") from error
