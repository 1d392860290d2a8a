"""Making one run of a study, and the process that makes many of them one after another.

    python -m muonlab.lab.worker OPTIONS      reads an order a line, answers a reply a line

An order is a run's config, and whether it ends with the test split.

The end of its input is the only order to stop: it comes from an engine that closes the pipe, and
from one that was killed. A training run then writes a checkpoint and can be resumed.
"""

import contextlib
import ctypes
import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import filelock
import torch

from muonlab import allocator
from muonlab.config import RunConfig, from_dict
from muonlab.data import DataConfig, DocumentSplit, TokenData
from muonlab.errors import InterruptedRun
from muonlab.files import as_json, write_whole
from muonlab.runs import RunBusyError, RunDirectory, RunError, now
from muonlab.train import NonfiniteLossError, train

FAILURE = "failed.json"  # beside config.json, of a run that ended without a summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What all runs of a worker share."""

    root: str
    cache_dir: str
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How a run ended. ``busy``: another process holds it. ``lost``: its process died."""

    status: Literal["finished", "failed", "busy", "interrupted", "lost"]
    message: str = ""
    notes: list[str] = field(default_factory=list)


def make_run(config: RunConfig, options: Options, *, read_test: bool = False) -> Reply:
    """Train one run to its end, from its checkpoint if it has one; never raises for its failure.

    ``read_test``: at its end it reads the test split, if there is one. What it finds is written
    with the summary, and a run with a summary is never made again: that is the only time.
    """
    run = RunDirectory.place(Path(options.root), config)
    notes: list[str] = []
    try:
        data = _prepare(config.data, options.cache_dir)
        while True:
            with _hold(run.path):
                if (run.path / FAILURE).exists():
                    return Reply(status="failed", notes=notes)
                if damage := find_damage(run, config, data):
                    notes.append(f"{damage}; set aside as {set_aside(run.path).name}, made again")
                    continue
                if (run.path / "summary.json").exists():
                    return Reply(status="finished", message="another process has made it")
                train(config, run, data, progress=False, read_test=read_test and has_test(data))
                return Reply(status="finished", notes=notes)
    except RunBusyError:
        return Reply(status="busy")
    except InterruptedRun as stop:
        return Reply(status="interrupted", message=str(stop), notes=notes)
    except Exception as error:  # whatever ends this run must not end the others
        record_failure(run.path, error)
        return Reply(status="failed", message=_first_line(error), notes=notes)


def has_test(data: TokenData) -> bool:
    """Whether the data keep text apart that neither trains nor validates."""
    return isinstance(data.split, DocumentSplit) and data.num_tokens("test") > 1


def find_damage(run: RunDirectory, config: RunConfig, data: TokenData) -> str:
    """What makes a run directory useless for going on; empty if nothing does."""
    try:
        if (run.path / "summary.json").exists():
            run.summary()
        if run.exists():
            run.check_is_of(config, data.data_hash)
        run.metrics()
        if run.checkpoint_steps():
            run.load_checkpoint()
    except RunError as error:
        return str(error)
    return ""


def set_aside(path: Path) -> Path:
    """Rename a damaged run directory to the first free name."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(target)


def record_failure(path: Path, error: BaseException) -> None:
    """Leave beside the run why it ended without a summary."""
    failure = {
        "diverged": isinstance(error, NonfiniteLossError),
        "error": _first_line(error),
        "time": now(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError):  # a full disk: the reply still says it
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / FAILURE, as_json(failure))


def serve(options: Options) -> None:
    """Make the runs that standard input asks for until it ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the engine, which tells us
    allocator.keep_freed_memory()
    torch.set_num_threads(options.threads)
    gc.freeze()  # modules stay: collecting after each run need not look at them (0.13 s)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def watch() -> None:
        for line in sys.stdin:
            requests.put(line)
        requests.put("")  # for a worker whose training has taken the signal
        os.kill(os.getpid(), signal.SIGTERM)  # training checkpoints, anything else just ends

    threading.Thread(target=watch, daemon=True).start()
    while request := requests.get():
        order = json.loads(request)
        forget_peak_memory()
        reply = make_run(from_dict(order["config"]), options, read_test=order["read_test"])
        replies.write(json.dumps(asdict(reply)) + "\n")
        replies.flush()


def forget_peak_memory() -> None:
    """Give unused memory back and start the process's peak anew: each run reports its own."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark


_opened: dict[str, TokenData] = {}  # a worker makes many runs on the same corpus


def _prepare(config: DataConfig, cache_dir: str) -> TokenData:
    key = f"{cache_dir}/{config.cache_key()}"
    if key not in _opened:
        _opened[key] = config.prepare(Path(cache_dir), progress=False)
    return _opened[key]


@contextlib.contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Hold a run from the look at what is there to its end.

    Training's own lock leaves a gap in which another engine could finish the run, and it would be
    made twice.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / ".study-lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunBusyError(f"{path} is in use by another process") from None
    try:
        yield
    finally:
        lock.release()


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


if __name__ == "__main__":
    serve(Options(**json.loads(sys.argv[1])))
