"""What a run says while it trains, on standard error and in its ``log.txt``.

In a terminal a bar moves with every step. Anywhere else a line says every ``train.log_every``
steps how far the run is. An evaluation is a line everywhere.
"""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from muonlab.config import RunConfig
from muonlab.runs import RunDirectory, now

LEAST_BAR = 6  # columns of a terminal that stay for the bar, with a blank


class Display:
    """Shows a run from ``step`` on; made by `show_progress`."""

    def __init__(self, config: RunConfig, run: RunDirectory, step: int) -> None:
        self.run = run
        self.total = config.train.steps
        self.log_every = config.train.log_every
        self.first_step = step
        self.started = time.monotonic()
        self.console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        facts = _Facts(f"{config.name}/{config.label} s{config.seed}", self)
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))  # takes what the facts leave
        self.bar = Progress(bar, facts, console=self.console, expand=True)
        self.task = self.bar.add_task("", total=self.total, completed=step)
        self.draws_bar = self.console.is_terminal

    def row(self, step: int, row: dict[str, float]) -> None:
        """Show a row of metrics: of a training step, or of an evaluation."""
        if "val/loss" in row:
            self.say(
                f"step {step}: validation loss {row['val/loss']:.4f} nats/token, "
                f"{row['val/bits_per_byte']:.4f} bits/byte"
            )
            return
        loss, rate = row["train/loss"], row["train/tokens_per_second"]
        facts = [f"loss {loss:.4f} nats/token", f"{rate:,.0f} tokens/s"]
        if self.draws_bar:
            self.bar.update(self.task, completed=step, facts=facts)
        if step % self.log_every == 0 or step == self.first_step + 1:
            line = f"step {step}/{self.total}: {', '.join(facts)}, {self._time_left(step)} left"
            self.say(line, on_screen=not self.draws_bar)

    def say(self, line: str, *, on_screen: bool = True) -> None:
        """Show a line, and keep it in the run's log with the time."""
        self.run.append_log(f"{now()} {line}")
        if on_screen:
            self.console.print(line)

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self.started) / (step - self.first_step)
        return _clock(seconds * (self.total - step))


@contextlib.contextmanager
def show_progress(config: RunConfig, run: RunDirectory, step: int) -> Iterator[Display]:
    """Yields the display of a run that is at ``step``."""
    display = Display(config, run, step)
    with display.bar if display.draws_bar else contextlib.nullcontext():
        yield display


class _Facts(ProgressColumn):
    """Beside the bar: as many whole facts as the terminal is wide enough for, in this order."""

    def __init__(self, label: str, display: Display) -> None:
        super().__init__()
        self.label = label
        self.display = display

    def render(self, task: Task) -> Text:
        count = f"{task.completed:.0f}/{task.total:.0f}"
        left = [f"{_clock(task.time_remaining)} left"] if task.time_remaining is not None else []
        loss, *rate = task.fields.get("facts", [""])
        kept, room = [], self.display.console.width - LEAST_BAR
        for fact in (count, loss, *left, *rate, self.label):
            if fact and len(", ".join([*kept, fact])) <= room:
                kept.append(fact)
        return Text(", ".join(kept), no_wrap=True)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
