"""Being asked to stop: by Ctrl-C, by `kill`, or because the terminal was closed."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from muonlab.errors import InterruptedRun

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGINT, SIGTERM or SIGHUP arrives; a second one acts at once.

    A hangup that is ignored when this begins, as under ``nohup``, stays ignored.
    """
    received: list[int] = []
    previous = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
        numbers.append(HANGUP)
    for number in numbers:
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupted(received: list[int], message: str) -> InterruptedRun:
    """What to raise after one of `stop_signals`: exit code 129 for a hangup, otherwise 130."""
    return InterruptedRun(message, exit_code=129 if received[0] == HANGUP else 130)
