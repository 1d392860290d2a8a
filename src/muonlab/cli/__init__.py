"""The command line: `muonlab COMMAND`. One file a group of commands; this one holds the border.

Exit codes: 0 done, 1 a run failed, 2 a mistake in what was asked for,
130 interrupted. A user's mistake is one line on standard error, never a traceback.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence

from tyro.extras import SubcommandApp


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``muonlab`` command: what concerns the whole process, then `run`."""
    from muonlab import machine

    machine.keep_freed_memory()
    warnings.showwarning = _one_line_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    from muonlab.study.engine import FailedRunsError
    from muonlab.train import InterruptedRun, NonfiniteLossError

    try:
        _application().cli(
            prog="muonlab",
            description="Train, compare and run small Mixture-of-Experts language models.",
            args=list(arguments) or ["--help"],
        )
        sys.stdout.flush()
    except (InterruptedRun, KeyboardInterrupt) as stop:
        return _say(str(stop) or "interrupted", 130)
    except (NonfiniteLossError, FailedRunsError) as failure:
        return _say(str(failure), 1)
    except BrokenPipeError:  # the reader of our output has left: what is still buffered is lost
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as mistake:
        return _say(str(mistake), 2)
    except SystemExit as parsed:  # --help, or arguments that do not parse
        return parsed.code if isinstance(parsed.code, int) else 2
    return 0


def _application() -> SubcommandApp:
    from muonlab.cli import bench, data, inspect, models, optim, runs, study, theory
    from muonlab.cli.claims import list_claims
    from muonlab.cli.demo import demo

    application = SubcommandApp()
    application.command(demo)
    application.command(data.application, name="data", help="Corpora: prepare one.")
    application.command(name="inspect")(inspect.inspect_recipe)
    application.command(name="train")(runs.train_recipe)
    application.command(runs.resume)
    application.command(name="runs")(runs.list_runs)
    application.command(name="eval")(models.evaluate_run)
    application.command(name="generate")(models.generate_from_run)
    application.command(name="export")(models.export_run)
    application.command(study.application, name="study", help="The papers' experiments.")
    application.command(name="claims")(list_claims)
    application.command(optim.application, name="optim", help="The optimizer's polynomials.")
    application.command(bench.application, name="bench", help="Measurements on this machine.")
    application.command(theory.application, name="theory", help="The papers' theorems, executed.")
    return application


def _say(message: str, code: int) -> int:
    print(f"muonlab: {' '.join(message.split())}", file=sys.stderr)
    return code


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"muonlab: warning: {message}", file=sys.stderr)
