"""Optional mirrors of a run's metrics in TensorBoard and Weights & Biases."""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from muonlab.config import ConfigError, to_dict
from muonlab.runs import RunDirectory

Write = Callable[[int, dict[str, float]], None]


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError unless every named mirror's package is there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install 'muonlab[trackers]'"
            )


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run: RunDirectory, step: int) -> Iterator[Write]:
    """Yields ``write(step, row)``, which sends a row to every named mirror.

    What a mirror holds of steps after ``step`` is superseded: the run is resumed from there.
    """
    with contextlib.ExitStack() as stack:
        writers = [_OPENERS[name](run, step, stack) for name in names]

        def write(step: int, row: dict[str, float]) -> None:
            for writer in writers:
                writer(step, row)

        yield write


def _open_tensorboard(run: RunDirectory, step: int, stack: contextlib.ExitStack) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    directory = str(run.path / "tensorboard")
    purge_step = step + 1 if step else None
    writer = stack.enter_context(SummaryWriter(directory, purge_step=purge_step))

    def write(step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)

    return write


def _open_wandb(run: RunDirectory, step: int, stack: contextlib.ExitStack) -> Write:
    wandb: Any = importlib.import_module("wandb")
    config = run.config()
    label = run.path.name
    session = stack.enter_context(
        wandb.init(
            project=config.name, name=label, id=label, config=to_dict(config), resume="allow"
        )
    )
    return lambda step, row: session.log(row, step=step)


_OPENERS = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
