"""Optional mirrors of a run's metrics in TensorBoard and Weights & Biases."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from muonlab.config import ConfigError, to_dict
from muonlab.runs import RunDirectory


class Trackers:
    """Sends every row to each mirror."""

    def __init__(self) -> None:
        self.writers: list[Any] = []

    def log(self, step: int, row: dict[str, float | int]) -> None:
        for write in self.writers:
            write(step, row)


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run: RunDirectory) -> Iterator[Trackers]:
    """Open the named mirrors; raises ConfigError if one is not installed."""
    trackers = Trackers()
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                trackers.writers.append(_OPENERS[name](run, stack))
            except ImportError as error:
                raise ConfigError(
                    f"train.trackers: {name} is not installed ({error.name}); "
                    f"pip install 'muonlab[trackers]'"
                ) from None
        yield trackers


def _open_tensorboard(run: RunDirectory, stack: contextlib.ExitStack) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))

    def write(step: int, row: dict[str, float | int]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)

    return write


def _open_wandb(run: RunDirectory, stack: contextlib.ExitStack) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    config = run.config()
    session = stack.enter_context(
        wandb.init(project=config.name, name=run.path.name, config=to_dict(config), resume="allow")
    )
    return lambda step, row: session.log(row, step=step)


_OPENERS = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
