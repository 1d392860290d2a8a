"""Checkpoints: the weights, the optimizer and the loop's state after some updates, whole or absent.

    checkpoints/step-00000500/{model.safetensors, optimizer.pt, state.json}

One is written aside, flushed to disk and renamed. A disk that fills up or a process that dies
leaves the previous one as it was.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from muonlab.custom_optimizer import AnyOptimizer
from muonlab.files import as_json, flush
from muonlab.run_errors import RunError, one_line_errors

CHECKPOINT_NAME = re.compile(r"step-(\d{8})$")


@dataclass(kw_only=True, slots=True)
class RunState:
    """What the loop carries besides weights. The dtype is settled once: a resumed run keeps it."""

    dtype: str  # bf16 or fp32
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    skipped_steps: int = 0
    final: dict[str, float] = field(default_factory=dict)  # metrics of the latest evaluation


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Training state after ``step`` updates."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: RunState


def steps(directory: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    names = (path.name for path in directory.glob("step-*"))
    return sorted(int(match[1]) for name in names if (match := CHECKPOINT_NAME.match(name)))


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: AnyOptimizer,
    state: RunState,
    keep: int,
) -> None:
    """Write a checkpoint aside and rename it; then drop all but the newest ``keep``.

    Raises RunError if it cannot be written; earlier checkpoints are then untouched.
    """
    target = directory / f"step-{step:08d}"
    if target.exists():
        return
    aside = directory / f".writing-{step:08d}"
    with one_line_errors(aside):
        for leftover in directory.glob(".*"):  # of a process that died
            shutil.rmtree(leftover)
        try:
            aside.mkdir(parents=True)
            _save_model(model, aside / "model.safetensors")
            with (aside / "optimizer.pt").open("wb") as file:  # Python's own: it names errors
                torch.save(optimizer.state_dict(), file)
            sizes = {file.name: file.stat().st_size for file in aside.iterdir()}
            facts = {"step": step, "state": asdict(state), "bytes": sizes}
            (aside / "state.json").write_text(as_json(facts))
            for file in (*aside.iterdir(), aside):
                flush(file)
            aside.rename(target)
            flush(directory)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            # torch and safetensors have errors of their own for a full disk
            raise OSError(None, str(error).splitlines()[0]) from error
        for old in steps(directory)[:-keep]:
            outdated = directory / f".deleting-{old:08d}"
            (directory / f"step-{old:08d}").rename(outdated)
            shutil.rmtree(outdated)


def load(directory: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of ``step``, or the newest; raises RunError if absent or damaged."""
    found = steps(directory)
    if not found:
        raise RunError(f"{directory.parent} has no checkpoint yet")
    chosen = found[-1] if step is None else step
    if chosen not in found:
        raise RunError(f"{directory.parent} has no checkpoint of step {step}; it has {found}")
    path = directory / f"step-{chosen:08d}"
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, size in facts["bytes"].items():
            actual = (path / name).stat().st_size
            if actual != size:
                raise RunError(f"{path / name} is damaged: {actual} bytes, {size} expected")
        return Checkpoint(
            step=facts["step"],
            model=safetensors.torch.load_file(path / "model.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", weights_only=True),
            state=RunState(**facts["state"]),
        )
    except RunError:
        raise
    except Exception as error:  # every reader has its own kinds of complaint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is damaged or no checkpoint: {reason}") from None


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
